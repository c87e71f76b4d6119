"""Classification by a small share of the labels, as in the semi-supervised tables of SimCLR (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics.display import ACCURACY, Display
from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.evaluation.tasks.classification.labels import Labelled, Labels, labelled
from mmcl.evaluation.tasks.classification.linear_probe import fit_probe
from mmcl.runtime.errors import MmclError

FRACTIONS = (0.01, 0.1)
SEEDS = 5
VALIDATION = 0.2  # of the few labels, to choose the penalty of a probe by


@dataclass(frozen=True, kw_only=True)
class FewShotScores:
    """Accuracies by a share of the labels, for several draws of it."""

    fraction: float
    """Of the training rows of each class, but at least one row."""
    train: int
    """Training rows of a draw."""
    classes: int
    draws: list[dict[str, float]]
    """top@1, and top@5 of more than five classes, of each draw."""
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap interval of the mean top@1, over the test images; empty if no resamples were asked for."""
    images: int
    """Test images."""

    @property
    def metrics(self) -> dict[str, float]:
        """The mean over the draws."""
        return {name: float(np.mean([draw[name] for draw in self.draws])) for name in self.draws[0]}

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation over the draws, 0 of a single one."""
        several = len(self.draws) > 1
        return {name: float(np.std([draw[name] for draw in self.draws], ddof=int(several))) for name in self.draws[0]}

    @property
    def top1(self) -> float:
        """The mean top@1."""
        return self.metrics["top@1"]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of ``top1``."""
        return self.intervals["top@1"]

    @property
    def size(self) -> str:
        """How much was judged, in words."""
        return f"{self.images:,} images, {self.classes:,} classes, {self.train:,} labels"

    @property
    def remarks(self) -> list[str]:
        """How many draws there are, and how they differ."""
        if len(self.draws) == 1:
            return ["one draw of the labels"]
        return [
            f"mean of {len(self.draws)} draws of the labels, with a standard deviation of {self.spread['top@1']:.4f}"
        ]

    @property
    def display(self) -> Display:
        """How a report shows the metrics."""
        return ACCURACY

    def chance(self) -> dict[str, float]:
        """What a random guess is expected to score."""
        return {name: int(name.removeprefix("top@")) / self.classes for name in self.draws[0]}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "metrics": self.metrics,
            "spread": self.spread,
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "draws": self.draws,
            "fraction": self.fraction,
            "train": self.train,
            "images": self.images,
            "classes": self.classes,
        }


def few_shot(
    train_vectors: Vectors,
    train_labels: Labels,
    test_vectors: Vectors,
    test_labels: Labels,
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = SEEDS,
    *,
    bootstrap: int = 1000,
    device: str | torch.device | None = None,
) -> list[FewShotScores]:
    """Accuracy of a linear probe that sees a share of the labels, drawn class by class.

    The penalty of each probe is chosen on a fifth of its own few labels, see :func:`mmcl.evaluation.linear_probe`.

    Args:
        train_vectors: (N, D), as the tower gives them.
        train_labels: (N,) class numbers or names.
        test_vectors: (M, D).
        test_labels: (M,).
        fractions: shares of each class's training rows, rounded, at least one row.
        seeds: draws of each share.
        bootstrap: resamples for the intervals; 0 for none.
        device: where to fit; by default where ``train_vectors`` lie if they are a tensor, else the CPU.

    Returns:
        The scores of each fraction.

    Raises:
        MmclError: as ``linear_probe``; a fraction that is not above 0 and up to 1, or no draws.
    """
    check_draws(fractions, seeds)
    rows = labelled(train_vectors, train_labels, test_vectors, test_labels)
    where = torch.device(device or (rows.train.device if isinstance(rows.train, Tensor) else "cpu"))

    def ranks(chosen: np.ndarray, seed: int) -> np.ndarray:
        labels = rows.train_labels[chosen]
        probe = fit_probe(
            rows.train[chosen], labels, rows.classes, None, validation=VALIDATION, seed=seed, device=where
        )
        if seed == 0:  # of the other draws it holds as well
            probe.report_unchosen()
        return probe.ranks(rows.test, rows.test_labels)

    return [few_shot_scores(rows, fraction, seeds, ranks, bootstrap=bootstrap) for fraction in fractions]


def few_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of a draw, ascending: of each class ``fraction`` of its rows, rounded, but at least one."""
    random = np.random.default_rng(seed)
    parts = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        parts.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(parts))


def few_shot_scores(
    rows: Labelled, fraction: float, seeds: int, ranks: Callable[[np.ndarray, int], np.ndarray], *, bootstrap: int
) -> FewShotScores:
    """The scores of a classifier for several draws of a share of the labels.

    Args:
        rows: to learn from and to judge on.
        fraction: of the labels.
        seeds: draws.
        ranks: from the training rows of a draw and its seed to the (M,) ranks of the test rows' own classes.
        bootstrap: resamples for the interval.
    """
    drawn = [few_rows(rows.train_labels, fraction, seed) for seed in range(seeds)]
    found = np.stack([ranks(chosen, seed) for seed, chosen in enumerate(drawn)])
    ks = [k for k in (1, 5) if k < max(2, rows.classes)]
    mean = bootstrapping.means({"top@1": (found == 1).mean(0)})
    _, intervals = bootstrapping.estimate(mean, found.shape[1], resamples=bootstrap)
    return FewShotScores(
        fraction=fraction,
        train=len(drawn[0]),
        classes=rows.classes,
        draws=[{f"top@{k}": float((each <= k).mean()) for k in ks} for each in found],
        intervals=intervals,
        images=found.shape[1],
    )


def check_draws(fractions: Sequence[float], seeds: int) -> None:
    """Raise ``MmclError`` unless there are fractions above 0 and up to 1, and at least one draw of each."""
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise MmclError(f"few_shot: the fraction {fraction:g} is no share of the labels; give one like 0.01")
    if not fractions or seeds < 1:
        raise MmclError("few_shot: give at least one fraction and one seed")
