"""How thoroughly an index must search to find a stated share of the nearest vectors, measured on held-out queries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import faiss
import numpy as np

from mmcl.retrieval.faiss import specs
from mmcl.retrieval.faiss.held_out import HeldOut, K

EffortSearch = Callable[[np.ndarray, int, int], np.ndarray]
"""Of queries (Q, D), k and an effort, the positions (Q, k) of what is found; -1 where it is less."""

_DEEPEST_REFINEMENT = 64
_MOST_CANDIDATES = 4_096
_STALLED = 0.002


@dataclass(frozen=True)
class Tuned:
    """How an index is to be searched, and what that finds.

    Attributes:
        effort: cells of an inverted file to visit, or candidates of a graph to keep; None if an index has neither.
        recall: share of the ten nearest that a search finds with it, on queries that did not choose it; of several
            kinds of queries, that which finds least.
        reached: whether it is what was asked for; if not, ``effort`` is the least that finds about as many as any.
        curve: (effort, recall, queries per second) of every effort tried, in order: recall as above, speed of many
            queries at once on the threads there are.
    """

    effort: int | None
    recall: float
    reached: bool
    curve: list[tuple[int, float, float]]


class _Point(NamedTuple):
    choosing: list[np.ndarray]  # for each kind, what each query of the half that chooses finds of its nearest
    recall: float  # of the other half, of the kind that finds least
    speed: float

    @property
    def chosen_by(self) -> float:
        return float(min(shares.mean() for shares in self.choosing))


def tune(index: Any, held: HeldOut, recall: float, search: EffortSearch) -> Tuned:
    """The least effort with which an index finds ``recall`` of the ten nearest.

    Half of the held-out queries choose the effort, so that of each kind they find ``recall`` and two standard errors
    more; the others measure what it finds. If the index ranks its hits again by finer vectors (``Refine``), it is first
    set how many it ranks: the least power of two times k that loses no more than a quarter of what ``recall`` allows.

    Args:
        index: a FAISS index that holds vectors.
        held: queries and their nearest in it.
        recall: in (0, 1].
        search: of ``index``, with an effort.
    """
    trial = _Trial(held, search)

    def reaches(effort: int) -> bool:
        return all(surely(shares, recall) for shares in trial(effort).choosing)

    found, least, most = specs.inside(index), 1, 1
    if isinstance(found, faiss.IndexIVF):
        most = found.nlist
    elif isinstance(found, faiss.IndexHNSW):
        least, most = K, max(K, min(index.ntotal, _MOST_CANDIDATES))
    if isinstance(index, faiss.IndexRefine):
        _set_refinement(index, trial, recall, most)
    if most == 1:
        return Tuned(1 if specs.has_effort(index) else None, trial(1).recall, reaches(1), [])
    effort = least_effort(reaches, least, most, trial.stalled)
    if effort is None:
        means = {effort: point.chosen_by for effort, point in trial.points.items()}
        effort = min(effort for effort, mean in means.items() if mean >= max(means.values()) - _STALLED)
    curve = [(at, round(point.recall, 4), round(point.speed, 1)) for at, point in sorted(trial.points.items())]
    chosen = trial(effort)
    reached = reaches(effort) or min(chosen.chosen_by, chosen.recall) >= recall  # if not for certain
    return Tuned(effort, chosen.recall, reached, curve)


def surely(shares: np.ndarray, recall: float) -> bool:
    """Whether (Q,) shares of the nearest that were found average ``recall``, less two standard errors: of indexes
    tuned to the average alone, every other one would find less on other queries."""
    mean = shares.mean()
    return bool(mean >= 1 or mean - 2 * shares.std() / np.sqrt(len(shares)) >= recall)


def least_effort(
    reaches: Callable[[int], bool], least: int, most: int, stalled: Callable[[int], bool] = lambda effort: False
) -> int | None:
    """The least effort from ``least`` to ``most`` that ``reaches``, to within a thirty-second; None if none does, or if
    more effort, as ``stalled`` says of one, no longer helps. More effort is taken to find at least as much."""
    low, high = least - 1, least
    while not reaches(high):
        if high >= most or stalled(high):
            return None
        low, high = high, min(2 * high, most)
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


class _Trial:
    """Searches with an effort, once each, and remembers what they found."""

    def __init__(self, held: HeldOut, search: EffortSearch) -> None:
        self._held, self._search = held, search
        self.points: dict[int, _Point] = {}

    def __call__(self, effort: int) -> _Point:
        if effort not in self.points:
            start = time.perf_counter()
            found = self._search(self._held.queries, K + 1, effort)
            speed = len(found) / max(time.perf_counter() - start, 1e-9)
            shares = self._held.shares(lambda queries, k: found)
            halves = self._held.halves()
            recall = min(float(shares[measuring].mean()) for _, measuring in halves)
            self.points[effort] = _Point([shares[choosing] for choosing, _ in halves], recall, speed)
        return self.points[effort]

    def stalled(self, effort: int) -> bool:
        """Whether four times the effort found hardly more, as with codes too coarse to tell neighbours apart."""
        return effort >= 64 and self(effort).chosen_by - self(effort // 4).chosen_by < _STALLED


def _set_refinement(index: Any, trial: _Trial, recall: float, most: int) -> None:
    effort = min(most, max(16, most // 32))  # so many that the cells lose little
    allowed = (1 - recall) / 4
    share = {}
    depth = 1
    while depth <= _DEEPEST_REFINEMENT:
        index.k_factor = depth
        share[depth] = trial(effort).chosen_by
        trial.points.clear()
        depth *= 2
    index.k_factor = min(depth for depth in share if share[depth] >= max(share.values()) - allowed)
