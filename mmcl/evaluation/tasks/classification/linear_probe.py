"""A linear classifier on frozen features: logistic regression, whose L2 penalty is chosen on training rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.evaluation.inputs import cutoffs
from mmcl.evaluation.metrics.logistic import Linear, Standardised, fit_logistic
from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.evaluation.tasks.classification.labels import Labels, labelled
from mmcl.evaluation.tasks.classification.scores import ClassificationScores, ranks_of
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
PENALTIES = tuple(10.0**power for power in range(1, -6, -1))
"""Tried from the strongest on, each from the optimum of the one before; then half a power either side of the best."""
_WITHOUT_VALIDATION = 0.01  # where no row can be spared: in the middle of what is tried


@dataclass(frozen=True, kw_only=True)
class LinearProbeScores(ClassificationScores):
    """What ``linear_probe`` measured."""

    l2: float
    """The penalty, chosen or given."""
    validation: dict[float, float]
    """Penalty to mean negative log-likelihood of the validation rows, of all that were tried; empty if it was given."""
    train: int
    """Training rows, those for validation included."""

    def to_dict(self) -> dict[str, Any]:
        validation = {f"{l2:.3g}": loss for l2, loss in self.validation.items()}
        return {**super().to_dict(), "l2": self.l2, "validation": validation, "train": self.train}


def linear_probe(
    train_vectors: Vectors,
    train_labels: Labels,
    test_vectors: Vectors,
    test_labels: Labels,
    l2: float | None = None,
    *,
    validation: float = 0.1,
    ks: Iterable[int] = (1, 5),
    bootstrap: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> LinearProbeScores:
    """Accuracy of multinomial logistic regression on frozen features.

    The features are standardised by the training rows. The penalty is the one under which a validation part of the
    *training* rows is most likely; with it the classifier is fitted on all of them. The test rows choose nothing.

    Args:
        train_vectors: (N, D), as the tower gives them: papers do not normalise them to unit length.
        train_labels: (N,) class numbers or names.
        test_vectors: (M, D).
        test_labels: (M,). Rows of a class that no training row has count as wrong, and are reported.
        l2: weight λ of the penalty λ/2 · ‖W‖² beside the mean loss, 1/(C · N) in scikit-learn's terms; chosen if
            absent.
        validation: share of each class's training rows to choose ``l2`` by. A class of which none can be spared has
            none there; it is still learned.
        ks: cut-offs of top@k.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples, and of the validation part.
        device: where to fit; by default where ``train_vectors`` lie if they are a tensor, else the CPU.

    Raises:
        MmclError: vectors that are empty, not finite or of different widths; labels that do not fit them, or of one
            class only; a penalty that is not above 0, or a share outside of 0 to 1.
    """
    check_penalty(l2)
    if not 0 < validation < 1:
        raise MmclError(f"linear_probe: validation is {validation}; give the share of the training rows, such as 0.1")
    rows = labelled(train_vectors, train_labels, test_vectors, test_labels)
    where = torch.device(device or (rows.train.device if isinstance(rows.train, Tensor) else "cpu"))
    probe = fit_probe(rows.train, rows.train_labels, rows.classes, l2, validation=validation, seed=seed, device=where)
    if l2 is None:
        probe.report_unchosen()
    return LinearProbeScores.of_ranks(
        probe.ranks(rows.test, rows.test_labels),
        rows.test_labels,
        rows.classes,
        names=rows.names,
        ks=cutoffs(ks),
        bootstrap=bootstrap,
        seed=seed,
        l2=probe.l2,
        validation=probe.validation,
        train=len(rows.train),
    )


def check_penalty(l2: float | None) -> None:
    """Raise ``MmclError`` unless the penalty is above 0, or to be chosen."""
    if l2 is not None and not 0 < l2 < np.inf:
        raise MmclError(f"linear_probe: l2 is {l2}; give a number above 0, or leave it out")


@dataclass(frozen=True)
class Probe:
    """A linear classifier that was fitted to N training rows.

    Attributes:
        features: of the N rows, standardised.
        classifier: of standardised features.
        l2: the penalty.
        validation: penalty to mean negative log-likelihood of the validation rows, of all that were tried.
    """

    features: Standardised
    classifier: Linear
    l2: float
    validation: dict[float, float]

    def ranks(self, vectors: Vectors, labels: np.ndarray) -> np.ndarray:
        """(M,) ranks of the classes ``labels`` of M vectors."""
        scores = self.classifier(self.features.map(vectors))
        return ranks_of(scores, torch.from_numpy(labels).to(scores.device))

    def of_raw_features(self) -> tuple[Tensor, Tensor]:
        """Weight (D, C) and bias (C,) of the same classifier of features that are not standardised."""
        features, linear = self.features, self.classifier
        weight = linear.weight * features.scale[:, None]
        return weight, linear.bias - features.mean @ weight

    def report_unchosen(self) -> None:
        """Log a warning if the penalty was to be chosen, but no row could be spared for it."""
        if not self.validation:
            log.warning(
                "linear probe: %d rows of %d classes leave none to choose the penalty by: it is %g",
                *(len(self.features.values), self.classifier.bias.shape[0], self.l2),
            )


def fit_probe(
    vectors: Vectors,
    labels: np.ndarray,
    classes: int,
    l2: float | None,
    *,
    validation: float,
    seed: int,
    device: torch.device,
) -> Probe:
    """Fit the classifier of :func:`linear_probe`.

    Args:
        vectors: (N, D).
        labels: (N,) from 0 to ``classes`` - 1, each at least once.
        classes: their number.
        l2, validation, seed, device: see there.
    """
    features, own = Standardised.of(vectors, device), torch.from_numpy(labels).to(device)
    tried: dict[float, float] = {}
    if l2 is None:
        l2, tried = _choose_penalty(features.values, own, classes, validation, seed)
    return Probe(features, fit_logistic(features.values, own, classes, l2), l2, tried)


def validation_rows(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """(N,) bool: a random ``share`` of the rows of each class, rounded; of a class with one row none."""
    chosen = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        chosen[rows[: min(len(rows) - 1, round(share * len(rows)))]] = True
    return chosen


def _choose_penalty(
    values: Tensor, labels: Tensor, classes: int, share: float, seed: int
) -> tuple[float, dict[float, float]]:
    """The penalty with the least loss on the validation rows, and the loss of each that was tried."""
    held = torch.from_numpy(validation_rows(labels.cpu().numpy(), share, seed)).to(values.device)
    if not held.any():
        return _WITHOUT_VALIDATION, {}
    tried: dict[float, float] = {}
    fitted: dict[float, Linear] = {}

    def attempt(l2: float, start: Linear | None) -> None:
        fitted[l2] = fit_logistic(values[~held], labels[~held], classes, l2, start)
        tried[l2] = F.cross_entropy(fitted[l2](values[held]), labels[held]).item()

    start = None
    for l2 in PENALTIES:
        attempt(l2, start)
        start = fitted[l2]
    best = min(tried, key=tried.__getitem__)
    for l2 in (best * 10**0.5, best / 10**0.5):
        attempt(l2, fitted[best])
    return min(tried, key=tried.__getitem__), tried
