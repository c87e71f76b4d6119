"""A table of image paths and captions becomes a model that finds images by words.

Run as it is, it draws a small table first; with your own, whose columns are ``path`` and ``caption``:
``python examples/own_pairs.py pairs.csv``.
"""

import csv
import sys
from pathlib import Path

import mmcl
from mmcl.data.sources import open_source


def draw_table(folder: Path, count: int = 600) -> Path:
    """A CSV of ``count`` drawn shapes with captions, as your own may look."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = open_source("sample:shapes", split="train")
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for number, image in enumerate(rows.images("image", range(count))):
            (folder / f"{number}.png").write_bytes(image)
            writer.writerow([f"{number}.png", rows.texts("text")[number]])
    return folder / "pairs.csv"


def main(table: Path, out: Path) -> None:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    config = {
        "name": "own_pairs",
        "data": {
            "train": {"source": str(table)},
            "columns": {"image": "path", "text": "caption"},
            "image": {"size": 32},
        },
        "model": {
            "dim": 64,
            "image": {"name": "timm:resnet10t", "args": {"channels": [16, 32, 48, 64], "stem_width": 16}},
            "text": {"name": "scratch", "layers": 1, "width": 64, "heads": 2, "tokenizer": {"vocab_size": 200}},
        },
        "training": {"epochs": 4, "batch_size": min(100, len(rows)), "lr": 2e-3},
    }
    run = mmcl.train(config, out=out / "run")
    encoder = run.model

    paths = list(dict.fromkeys(row["path"] for row in rows))  # an image may have several captions
    index = mmcl.Index.build(encoder.encode([table.parent / path for path in paths]), ids=paths)
    ids, scores = index.search(encoder.encode("a small red circle left of a large blue square"), k=3)
    for name, score in zip(ids[0], scores[0], strict=True):
        print(f"{score:.3f}  {name}")


if __name__ == "__main__":
    out = Path("runs/own_pairs")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else draw_table(out / "table"), out)
