"""Classification by the votes of the nearest training rows (Wu et al. 2018, arXiv:1805.01978, section 3.4)."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.evaluation.tasks.classification.labels import Labels, labelled
from mmcl.evaluation.tasks.classification.scores import ClassificationScores, ranks_of
from mmcl.retrieval.exact import exact_search
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


@dataclass(frozen=True, kw_only=True)
class KnnScores(ClassificationScores):
    """What ``knn`` measured."""

    k: int
    """Neighbours that vote."""
    temperature: float
    train: int
    """Training rows."""

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "k": self.k, "temperature": self.temperature, "train": self.train}


def knn(
    train_vectors: Vectors,
    train_labels: Labels,
    test_vectors: Vectors,
    test_labels: Labels,
    k: int = 200,
    temperature: float = 0.1,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> KnnScores:
    """Accuracy of the class for which the k nearest training rows vote, each with the weight exp(cosine / τ).

    Exact: all training rows are compared, tile by tile. Classes with equal votes rank behind each other, so that a tie
    never helps. The tables of papers are made with k = 200 and τ = 0.1 (or 0.07), and with k = 20 and τ = 0.07.

    Args:
        train_vectors: (N, D), of any length.
        train_labels: (N,) class numbers or names.
        test_vectors: (M, D).
        test_labels: (M,). Rows of a class that no training row has count as wrong, and are reported.
        k: neighbours; all N, with a warning, where it is more.
        temperature: τ.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples.
        device: where to compare; by default where ``test_vectors`` lie if they are a tensor, else the CPU.

    Returns:
        Among others ``top1`` and its 95% ``interval``.

    Raises:
        MmclError: vectors that are empty, not finite or of different widths; labels that do not fit them, or of one
            class only; k below 1 or a temperature that is not above 0.
    """
    return knn_table(
        train_vectors,
        train_labels,
        test_vectors,
        test_labels,
        [k],
        [temperature],
        bootstrap=bootstrap,
        seed=seed,
        device=device,
    )[0]


def knn_table(
    train_vectors: Vectors,
    train_labels: Labels,
    test_vectors: Vectors,
    test_labels: Labels,
    ks: Sequence[int],
    temperatures: Sequence[float],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> list[KnnScores]:
    """As :func:`knn`, for every k with every temperature, of which each training row is compared once."""
    ks, temperatures = list(dict.fromkeys(ks)), list(dict.fromkeys(temperatures))
    check_votes(ks, temperatures)
    rows = labelled(train_vectors, train_labels, test_vectors, test_labels)
    most = len(rows.train)
    if max(ks) > most:
        log.warning("knn: k is %d, but there are %d training rows: all of them vote", max(ks), most)
        ks = list(dict.fromkeys(min(k, most) for k in ks))
    where = torch.device(device or (rows.test.device if isinstance(rows.test, Tensor) else "cpu"))
    classes_of = torch.from_numpy(rows.train_labels).to(where)
    found = exact_search(rows.test, rows.train, max(ks), device=where)
    neighbours, cosines = (torch.from_numpy(part).to(where) for part in found)
    classes_of, own = classes_of[neighbours], torch.from_numpy(rows.test_labels).to(where)
    scores = []
    for k, temperature in itertools.product(ks, temperatures):
        votes = _votes(cosines[:, :k], classes_of[:, :k], temperature, rows.classes)
        scores.append(
            KnnScores.of_ranks(
                ranks_of(votes, own),
                rows.test_labels,
                rows.classes,
                names=rows.names,
                ks=(1,),
                bootstrap=bootstrap,
                seed=seed,
                k=k,
                temperature=temperature,
                train=most,
            )
        )
    return scores


def _votes(cosines: Tensor, classes_of: Tensor, temperature: float, classes: int) -> Tensor:
    """(n, C): the weights of the neighbours of each class, by a factor of its own for each row, which keeps them
    finite at any temperature."""
    weights = torch.exp((cosines - cosines[:, :1]) / temperature)
    return cosines.new_zeros(len(cosines), classes).scatter_add_(1, classes_of, weights)


def check_votes(ks: Sequence[int], temperatures: Sequence[float]) -> None:
    """Raise ``MmclError`` unless there are numbers of neighbours from 1 up, and temperatures above 0."""
    if not ks or not temperatures:
        raise MmclError("knn: give at least one k and one temperature, such as k=200 and temperature=0.1")
    for k in ks:
        if k < 1:
            raise MmclError(f"knn: k is {k}; give a number of neighbours from 1 up")
    for temperature in temperatures:
        if not (math.isfinite(temperature) and temperature > 0):
            raise MmclError(f"knn: the temperature is {temperature}; give a number above 0, such as 0.1")
