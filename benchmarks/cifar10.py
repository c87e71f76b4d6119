"""What the scripts over CIFAR-10 share: its rows, the experiments of `configs/cifar10/`, and how a tower is judged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmcl
from mmcl.config import Config, load_config
from mmcl.data.sources import open_source
from mmcl.evaluation import knn, linear_probe

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "cifar10"
CONFIGS = ROOT / "configs" / "cifar10"
METHODS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

Encode = Callable[[Sequence[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Images:
    """Encoded images and their class numbers."""

    images: list[Any]
    labels: NDArray[np.int64]

    @classmethod
    def read(cls, *files: Path, rows: int | None = None) -> Images:
        """The rows of Parquet files with the columns ``image`` and ``label``; the first ``rows`` of each."""
        parts = [open_source(file) for file in files]
        counts = [min(len(part), rows or len(part)) for part in parts]
        images = [image for part, n in zip(parts, counts, strict=True) for image in part.images("image", range(n))]
        labels = [label for part, n in zip(parts, counts, strict=True) for label in part.column("label")[:n]]
        return cls(images, np.array([int(label) for label in labels]))


def experiment(method: str, files: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """The config of a method over images alone, on other files."""
    first, *more = map(str, files)
    mix = ", ".join(f"{{source: {file}}}" for file in more)
    data = [f"data.train.source={first}", "data.train.split=null", f"data.mix=[{mix}]"]
    return load_config(CONFIGS / f"{method}.yaml", [*data, *overrides])


def features(encoder: mmcl.Encoder) -> Encode:
    """What a linear probe sees: the embeddings of images, not normalised."""
    return functools.partial(encoder.encode, normalize=False)


def judge(encode: Encode, train: Images, test: Images, *, probe: bool = True) -> dict[str, Any]:
    """kNN (k = 200, τ = 0.1) and a linear probe: accuracy on ``test`` in %, with 95% intervals."""
    bank, queries = encode(train.images), encode(test.images)
    scores = {"kNN": knn(bank, train.labels, queries, test.labels, k=200, temperature=0.1)}
    if probe:
        scores["linear probe"] = linear_probe(bank, train.labels, queries, test.labels)
    return {
        name: {"value": 100 * score.top1, "interval": [100 * bound for bound in score.interval]}
        for name, score in scores.items()
    }


def shown(score: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    return "{:.1f} ({:.1f} – {:.1f})".format(score["value"], *score["interval"])
