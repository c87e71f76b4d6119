"""How fast image files become vectors: mmcl beside a loop over open_clip, as clip-retrieval's is.

python benchmarks/encode_images.py                                    a thousand JPEGs, ViT-S-32 and ViT-B-32
python benchmarks/encode_images.py --images 200 --rounds 1 --models ViT-S-32

The loop: open_clip's own transform in two workers of a DataLoader, ``encode_image`` of batches, vectors of unit length,
one array in the end. mmcl: ``encode_source``, what `mmcl encode` calls, which also writes shards to disk. Both have the
same random weights, files and threads. The loop computes in float32, as it does by default, and under autocast in what
mmcl's default is on this machine; mmcl in both, each with Pillow's resampling and with torch's (`--fast-resize`). The
JPEGs are Flickr8k's, as shared/data has them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import alternate, show, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import mmcl
from mmcl.data.sources import open_source
from mmcl.encoding import Encoder, encode_source

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k_1000.parquet"
BATCH, WORKERS = 64, 2


class Files(Dataset[torch.Tensor]):
    """Image files as a model of open_clip takes them."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[number]))


@torch.inference_mode()
def by_loop(model: Any, transform: Any, paths: list[Path], precision: str) -> np.ndarray:
    """(N, D) as a loop of one's own would compute them."""
    loader = DataLoader(Files(paths, transform), BATCH, num_workers=WORKERS)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        parts = [torch.nn.functional.normalize(model.encode_image(pixels).float(), dim=-1) for pixels in loader]
    return torch.cat(parts).numpy()


def by_mmcl(encoder: Encoder, table: Path, out: Path, precision: str, fast: bool) -> np.ndarray:
    """(N, D) as `mmcl encode` writes them."""
    shutil.rmtree(out, ignore_errors=True)
    encoder.set_compute(precision)
    encoder.fast_resize = fast
    vectors = encode_source(encoder, open_source(table), "image", out, show_progress=False)
    return vectors.take(np.arange(len(vectors)))


def compared(name: str, paths: list[Path], table: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Images a second of one architecture."""
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    weights = folder / f"{name}.pt"
    torch.save(model.state_dict(), weights)
    encoder = mmcl.load(f"{name}/{weights}", device="cpu")
    found: dict[str, np.ndarray] = {}

    def keeping(by: str, run: Callable[[], np.ndarray]) -> Callable[[], None]:
        return lambda: found.update({by: run()})

    auto = encoder.compute
    ways = {"float32": ("float32", False), "float32, --fast-resize": ("float32", True)}
    ways |= {auto: ("auto", False), f"{auto}, --fast-resize": ("auto", True)} if auto != "float32" else {}
    contenders = {}
    loops = {"open_clip": "float32"} | ({f"open_clip, {auto}": auto} if auto != "float32" else {})
    for by, precision in loops.items():
        contenders[by] = keeping(by, partial(by_loop, model, transform, paths, precision))
    for way, (precision, fast) in ways.items():
        run = lambda precision=precision, fast=fast: by_mmcl(encoder, table, folder / "out", precision, fast)  # noqa: E731
        contenders[f"mmcl, {way}"] = keeping(f"mmcl, {way}", run)
    seconds = alternate(contenders, rounds)
    rows: list[dict[str, Any]] = []
    for by, took in seconds.items():
        row = {"model": name, "by": by, "images/s": len(paths) / took, "times as fast": seconds["open_clip"] / took}
        rows.append(row | {"least cosine": round(float((found[by] * found["open_clip"]).sum(1).min()), 6)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["ViT-S-32", "ViT-B-32"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    images = pq.read_table(asked.data, columns=["image"])["image"].combine_chunks()[: asked.images]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        folder, paths = Path(kept), []
        for number, image in enumerate(images):
            paths.append(folder / f"{number:05}.jpg")
            content = image.as_py()
            paths[-1].write_bytes(content["bytes"] if isinstance(content, dict) else content)
        pq.write_table(pa.table({"image": [str(path) for path in paths]}), folder / "images.parquet")
        for name in asked.models:
            rows += compared(name, paths, folder / "images.parquet", folder, asked.rounds)
            write(asked.out, rows, images=len(paths), batch=BATCH, workers=WORKERS, threads=threads)
    show(rows)


if __name__ == "__main__":
    main()
