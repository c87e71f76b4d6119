"""Who finds more in the same minutes: mmcl, or open_clip's own towers and loss in a plain loop?

python benchmarks/fashion.py --data ../shared/data/fashion --minutes 15

Both learn from the same images and captions with the same batch, and are judged by the same code. mmcl's minutes
start with an empty cache and hold everything: the tokenizer, decoding, evaluation during training, writing the model.
open_clip's hold the loop alone.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from measure import machine, show
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import mmcl
from mmcl.config.load import load_config
from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.evaluation import retrieval_pairs
from mmcl.evaluation.tasks.classification.zero_shot import Encodes
from mmcl.evaluation.tasks.rows import zero_shot_of_rows
from mmcl.runtime.device import DTYPES, resolve_precision

ROOT = Path(__file__).resolve().parents[1]
SIZE, TOKENS = 64, 24
WARMUP = 0.05  # of the time
log = logging.getLogger("fashion")


class OpenClip:
    """An open_clip model with the one method that the evaluation asks for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        # Squashed, as a crop of 90 to 100% of a 60 × 80 image is in training: its default cuts off a quarter.
        self.transform = open_clip.image_transform(SIZE, is_train=False, resize_mode="squash")

    @torch.inference_mode()
    def encode(self, inputs: Sequence[str | bytes | Image.Image]) -> np.ndarray:
        """(N, D) float32 unit vectors of N texts or N images."""
        parts = []
        for start in range(0, len(inputs), 256):
            some = inputs[start : start + 256]
            if isinstance(some[0], str):
                parts.append(self.model.encode_text(_tokenize(some), normalize=True))
            else:
                pixels = torch.stack([self.transform(_image(image)) for image in some])
                parts.append(self.model.encode_image(pixels, normalize=True))
        return torch.cat(parts).float().numpy()


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Images through open_clip's transform for training, and captions as its tokens."""

    def __init__(self, rows: Rows) -> None:
        self.images = rows.images("image", range(len(rows)))
        self.tokens = _tokenize(rows.texts("caption"))
        self.transform = open_clip.image_transform(SIZE, is_train=True)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(_image(self.images[row])), self.tokens[row]


def _image(encoded: Any) -> Image.Image:
    image = encoded if isinstance(encoded, Image.Image) else Image.open(io.BytesIO(encoded))
    return image.convert("RGB")


def _tokenize(texts: Sequence[Any]) -> Tensor:
    return open_clip.tokenize(list(texts), context_length=TOKENS)


def open_clip_model() -> nn.Module:
    """ModifiedResNet 2-2-2-2 of width 32 at 64², and a text transformer of 4 layers of width 256."""
    return open_clip.CLIP(
        embed_dim=256,
        vision_cfg={"layers": (2, 2, 2, 2), "width": 32, "image_size": SIZE},
        text_cfg={"context_length": TOKENS, "width": 256, "heads": 4, "layers": 4},
        output_dict=True,
    )


def train_open_clip(rows: Rows, args: argparse.Namespace) -> tuple[Encodes, dict[str, Any]]:
    """A plain loop for the given time: the learning rate follows the clock instead of a number of steps."""
    torch.manual_seed(args.seed)
    model, loss_of = open_clip_model().train(), open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(_groups(model, decay=0.2), lr=args.lr)
    pairs = Pairs(rows)
    loader = DataLoader(pairs, args.batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    precision = resolve_precision(args.precision, torch.device("cpu"))
    budget, steps = 60 * args.minutes, 0
    start = last_line = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget:
        for images, texts in loader:
            elapsed = time.perf_counter() - start
            if elapsed >= budget:
                break
            for group in optimizer.param_groups:
                group["lr"] = args.lr * _schedule(elapsed / budget)
            with torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != "float32"):
                loss = loss_of(**model(images, texts))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            steps += 1
            if time.perf_counter() - last_line > 30:
                last_line = time.perf_counter()
                log.info("open_clip: %3.0f s, step %d, loss %.3f", elapsed, steps, loss.item())
    seconds = time.perf_counter() - start
    facts = {"seconds": seconds, "precision": precision, "epochs": steps * args.batch / len(pairs)}
    return OpenClip(model), facts | {"pairs_per_second": steps * args.batch / seconds}


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """As open_clip's own training script has it: gains, biases and the temperature do not decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(progress: float) -> float:
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    return (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2


def train_mmcl(args: argparse.Namespace) -> tuple[Encodes, dict[str, Any]]:
    """The config's run, from nothing: cache and run folder are new and thrown away."""
    train, dev = (str(args.data / f"{part}.parquet") for part in ("train", "dev"))
    settings = load_config(args.config, args.set).model_dump(mode="json")  # without the folders of this machine
    overrides = [f"data.train.source={train}", "data.train.split=null", *args.set]
    config = load_config(args.config, overrides)
    config.evaluation.sources = {
        name: source.model_copy(update={"source": dev, "split": None})
        for name, source in config.evaluation.sources.items()
    }
    cache = os.environ.get("MMCL_CACHE")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MMCL_CACHE"] = f"{scratch}/cache"
        try:
            start = time.perf_counter()
            run = mmcl.train(config, out=args.run or Path(scratch) / "run", show_progress=False)
            seconds = time.perf_counter() - start
        finally:
            os.environ.pop("MMCL_CACHE") if cache is None else os.environ.update(MMCL_CACHE=cache)
        training = run.card["training"]
        pairs = training["steps"] * config.training.batch_size * config.training.accumulate
        facts = {"seconds": seconds, "precision": training["precision"], "epochs": config.training.epochs}
        return run.model, facts | {"pairs_per_second": pairs / seconds, "config": settings}


def judge(encoder: Encodes, rows: Rows) -> dict[str, dict[str, Any]]:
    """Metric to value and 95% interval, in %. Equal captions are right answers for each other's images."""
    captions = rows.texts("caption")
    images = encoder.encode(rows.images("image", range(len(rows))))
    ways = retrieval_pairs(images, encoder.encode(captions), ids=(None, captions), ks=(1, 10))
    scores: dict[str, Any] = {way: (result, ("hit@1", "hit@10")) for way, result in ways.items()}
    kinds = zero_shot_of_rows(encoder, rows, label="article_type", templates=("{name}",), ks=(1,))
    scores[f"zero-shot, {kinds.classes} article types"] = kinds, ("top@1",)
    return {
        f"{what}, {metric}": {
            "value": 100 * result.metrics[metric],
            "interval": [100 * bound for bound in result.intervals[metric]],
        }
        for what, (result, metrics) in scores.items()
        for metric in metrics
    }


def report(result: dict[str, Any]) -> None:
    """One line a metric, the contenders side by side."""
    contenders = result["contenders"]
    rows = []
    for metric in next(iter(contenders.values()))["scores"]:
        scores = {name: contender["scores"][metric] for name, contender in contenders.items()}
        row = {"metric": metric} | {
            name: "{:.1f} ({:.1f} – {:.1f})".format(score["value"], *score["interval"])
            for name, score in scores.items()
        }
        if {"mmcl", "open_clip"} <= set(scores):
            row["ahead beyond the intervals"] = scores["mmcl"]["interval"][0] > scores["open_clip"]["interval"][1]
        rows.append(row)
    show(rows)
    for name, contender in contenders.items():
        print(
            "{}: {seconds:.0f} s, {epochs:.1f} epochs, {pairs_per_second:.0f} pairs/s, {precision}".format(
                name, **contender
            )
        )
        if contender["seconds"] > 60 * contender["minutes"] * 1.02:
            print(f"{name} took longer than its {contender['minutes']:g} minutes")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", choices=("both", "mmcl", "open_clip"), default="both")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "fashion")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="what judges: dev while tuning")
    parser.add_argument("--minutes", type=float, default=15.0, help="time of each contender")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "clip_fashion.yaml", help="of mmcl's run")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of that config")
    parser.add_argument("--batch", type=int, help="of open_clip's loop; that of the config if absent")
    parser.add_argument("--lr", type=float, default=1e-3, help="of open_clip's loop")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of that loop")
    parser.add_argument("--seed", type=int, default=0, help="of that loop")
    parser.add_argument("--run", type=Path, help="folder to keep mmcl's run in")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = arguments()
    args.batch = args.batch or load_config(args.config).training.batch_size
    judged = open_source(args.data / f"{args.split}.parquet")
    learners = {
        "open_clip": lambda: train_open_clip(open_source(args.data / "train.parquet"), args),
        "mmcl": lambda: train_mmcl(args),
    }
    conditions = {"machine": machine(), "split": args.split, "rows": len(judged), "batch": args.batch}
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    comparable = conditions.items() <= before.items()
    result = {**conditions, "contenders": before["contenders"] if comparable else {}}
    for name in learners if args.contender == "both" else [args.contender]:
        encoder, facts = learners[name]()
        result["contenders"][name] = {"minutes": args.minutes, **facts, "scores": judge(encoder, judged)}
        args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    report(result)


if __name__ == "__main__":
    main()
