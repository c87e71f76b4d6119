"""What a classification of images is worth: accuracies with intervals, by class and in all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics.display import ACCURACY, Display


@dataclass(frozen=True, kw_only=True)
class ClassificationScores:
    """Accuracies of N images. Keys are top@k and mean_per_class, all fractions in [0, 1]."""

    metrics: dict[str, float]
    """top@k: how many images have their class among the best k. mean_per_class: top@1, averaged over the classes."""
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap intervals over the images; empty if no resamples were asked for."""
    per_class: dict[Any, float]
    """top@1 of each class that has images, by its name or number."""
    ranks: np.ndarray
    """(N,) the 1-based rank of each image's own class; a tie never helps."""
    labels: np.ndarray
    """(N,) the number of each image's own class."""
    query_ids: list[Any]
    """What the N images are called: row numbers, or ids where they come from a table."""
    classes: int
    """Classes that are offered as answers; those of labels from here up are not, and never right."""
    empty_classes: int
    """Classes without an image: they are offered as answers, and are not in mean_per_class."""
    data: str = ""
    """Equal for models that were judged on the same rows of a table; else empty."""

    @classmethod
    def of_ranks(
        cls,
        ranks: np.ndarray,
        labels: np.ndarray,
        classes: int,
        *,
        names: Sequence[Any],
        ks: Iterable[int] = (1, 5),
        bootstrap: int = 1000,
        seed: int = 0,
        **more: Any,
    ) -> Self:
        """The scores of N images by the rank of their class.

        Args:
            ranks: (N,) int64, from 1.
            labels: (N,) int64 class numbers.
            classes: how many are offered as answers.
            names: of the class numbers, of those that are not offered as well.
            ks: cut-offs of top@k. Those of ``classes`` and above are left out: whatever the model, they would be 1.
            bootstrap: resamples for the intervals; 0 for none.
            seed: of the resamples.
            more: fields that a subclass adds.
        """
        statistic = _statistic(ranks, labels, [k for k in ks if k < classes] or [1])
        metrics, intervals = bootstrapping.estimate(statistic, len(labels), resamples=bootstrap, seed=seed)
        sizes = np.bincount(labels, minlength=classes)
        correct = np.bincount(labels[ranks == 1], minlength=len(sizes))
        return cls(
            metrics=metrics,
            intervals=intervals,
            per_class={names[code]: int(correct[code]) / int(sizes[code]) for code in np.flatnonzero(sizes).tolist()},
            ranks=ranks,
            labels=labels,
            query_ids=list(range(len(labels))),
            classes=classes,
            empty_classes=int((sizes[:classes] == 0).sum()),
            **more,
        )

    @property
    def top1(self) -> float:
        """The share of images whose class is the first answer."""
        return self.metrics["top@1"]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of ``top1``."""
        return self.intervals["top@1"]

    @property
    def images(self) -> int:
        """Number of images classified."""
        return len(self.ranks)

    @property
    def class_images(self) -> dict[Any, int]:
        """How many images each class has, of those that have any."""
        return dict(zip(self.per_class, np.unique(self.labels, return_counts=True)[1].tolist(), strict=True))

    @property
    def largest_class(self) -> tuple[Any, float]:
        """The class with the most images, and its share of them: what a model scores that always answers it."""
        name, images = max(self.class_images.items(), key=lambda item: item[1])
        return name, images / self.images

    @property
    def size(self) -> str:
        """How much was judged, in words."""
        return f"{self.images:,} images, {self.classes:,} classes"

    @property
    def remarks(self) -> list[str]:
        """What was counted as wrong without being judged."""
        count = self.not_offered
        return [f"{count:,} images are of classes that were not learned, and count as wrong"] if count else []

    @property
    def display(self) -> Display:
        """How a report shows the metrics."""
        return ACCURACY

    @property
    def not_offered(self) -> int:
        """Images of classes that are not among the answers: counted as wrong."""
        return int((self.labels >= self.classes).sum())

    @property
    def per_query(self) -> dict[str, np.ndarray]:
        """(N,) values of each image whose mean is the metric."""
        values = {
            name: (self.ranks <= int(name.removeprefix("top@"))).astype(np.float64)
            for name in self.metrics
            if name.startswith("top@")
        }
        return values | {"mean_per_class": (self.ranks == 1) * self._weights}

    @property
    def _weights(self) -> np.ndarray:
        """(N,) A mean over classes is a mean over images in which each class weighs the same."""
        _, own, sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
        return np.asarray(len(own) / (len(sizes) * sizes[own]))

    def chance(self) -> dict[str, float]:
        """What a random guess is expected to score."""
        offered = self.labels < self.classes
        shares = {"mean_per_class": float((offered * self._weights).mean()) / self.classes}
        for name in self.metrics:
            if name.startswith("top@"):
                shares[name] = float(offered.mean()) * int(name.removeprefix("top@")) / self.classes
        return {name: shares[name] for name in self.metrics}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values of single images, ready for JSON."""
        return {
            "metrics": dict(self.metrics),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "chance": self.chance(),
            "per_class": {str(name): value for name, value in self.per_class.items()},
            "class_images": {str(name): count for name, count in self.class_images.items()},
            "largest_class": {"name": str(self.largest_class[0]), "share": self.largest_class[1]},
            "images": self.images,
            "classes": self.classes,
            "empty_classes": self.empty_classes,
            "not_offered": self.not_offered,
        }


def ranks_of(scores: Tensor, own: Tensor) -> np.ndarray:
    """(N,) int64, the rank of each row's own class by ``scores`` (N, C); behind all of them for a class from C up.

    Classes with equal scores rank behind each other: a tie never helps.
    """
    classes = scores.shape[1]
    mine = scores.gather(1, own.clamp(max=classes - 1)[:, None])
    ranks = torch.where(own < classes, (scores >= mine).sum(1), classes + 1)
    return np.asarray(ranks.cpu().numpy())


def _statistic(ranks: np.ndarray, labels: np.ndarray, ks: Iterable[int]) -> bootstrapping.Statistic:
    top = bootstrapping.means({f"top@{k}": (ranks <= k).astype(np.float64) for k in ks})
    per_class = bootstrapping.group_means((ranks == 1).astype(np.float64), labels)
    return lambda counts: top(counts) | {"mean_per_class": per_class(counts)}
