"""Semantic textual similarity: does the model order pairs of sentences as people do.

The table of the SimCSE paper (Gao et al. 2021, arXiv:2104.08821): Spearman's correlation of the model's similarities
with the scores, over all subsets of a task concatenated ("all"), and its average over the tasks.

Similarities are computed in float64 from the vectors and rounded to a billionth of the largest, far below what float32
vectors tell apart, so that pairs that are equally alike tie exactly, as pairs of equal sentences do, instead of being
ordered by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mmcl.evaluation.measured import Measures
from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics.correlation import pearson, spearman
from mmcl.evaluation.metrics.display import CORRELATION
from mmcl.evaluation.tasks.diagnostics import Diagnostics, diagnose_pairs
from mmcl.evaluation.tasks.sentence_pairs import SentencePairs, Table, open_sts
from mmcl.evaluation.texts import Encodes, embed_texts
from mmcl.evaluation.trained_on import warn_of_training_pairs
from mmcl.runtime.errors import MmclError, nearest

PairSimilarity: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]

SAME = 4.0
"""Pairs whose score, from 0 to 5, is above this mean the same."""

FEWEST = 10
"""Pairs that an interval takes: resamples of fewer repeat so few orders that it would claim what it cannot know."""

_UNIT = 1e-9
_ROWS = 4096  # pairs compared at once


@dataclass(frozen=True)
class StsScores:
    """What ``sts`` measured. Correlations are fractions in [-1, 1], which papers print × 100; NaN where undefined."""

    metrics: dict[str, float]
    """``STSB/spearman`` and ``STSB/pearson`` of every task; ``spearman`` and ``pearson`` are their averages."""
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap intervals, pairs being resampled within their task; empty if no resamples were asked for, and
    NaN of a task of fewer than ``FEWEST`` pairs and of the average over it."""
    similarities: dict[str, np.ndarray]
    """(N,) by task, the model's; distances are negated, so that higher is more alike."""
    scores: dict[str, np.ndarray]
    """(N,) by task, people's."""
    similarity: str
    left_out: int = 0
    """Rows without two sentences and a score."""
    data: str = ""
    """Equal for models that were judged on the same pairs."""

    @property
    def tasks(self) -> list[str]:
        """In the order of the table."""
        return list(self.scores)

    @property
    def average(self) -> float:
        """Spearman's correlation, averaged over the tasks; undefined if that of a task is."""
        return self.metrics["spearman"]

    def directions(self) -> dict[str, Measures]:
        """For a report: the average over the tasks, called "", where there are several, and each task."""
        ways = {task: f"{len(self.scores[task]):,} pairs" for task in self.tasks}
        if len(ways) > 1:
            ways = {"": f"over {len(ways)} tasks"} | ways
        found = {}
        for way, size in ways.items():
            keys = {name: f"{way}/{name}" if way else name for name in ("spearman", "pearson")}
            metrics = {name: self.metrics[key] for name, key in keys.items()}
            intervals = {name: self.intervals[key] for name, key in keys.items() if key in self.intervals}
            found[way] = Measures(metrics, CORRELATION, intervals, size=size)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values of single pairs, ready for JSON: fractions in [-1, 1], null where undefined."""

        def known(value: float) -> float | None:
            return None if np.isnan(value) else value

        return {
            "metrics": {name: known(value) for name, value in self.metrics.items()},
            "intervals": {name: [known(low), known(high)] for name, (low, high) in self.intervals.items()},
            "pairs": {task: len(score) for task, score in self.scores.items()},
            "similarity": self.similarity,
            "left_out": self.left_out,
        }


def sts(
    encoder: Encodes,
    table: Table | SentencePairs | None = None,
    *,
    split: str | None = "test",
    similarity: PairSimilarity = "cosine",
    prompt: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> StsScores:
    """Correlate a model's similarities with people's.

    Args:
        encoder: anything with ``encode(texts) -> (N, D)``; it gets every distinct sentence once.
        table, split: see ``mmcl.evaluation.open_sts``, whose result may stand here too. Without a table, the seven
            tasks of the SimCSE paper from the hub.
        similarity: "cosine"; or "dot", "euclidean", "manhattan" of vectors that are not normalised, which
            ``encoder.encode`` is asked for with ``normalize=False``.
        prompt: the name of a prompt, handed to ``encode`` if it is given.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples.

    A correlation is undefined, NaN, where all similarities or all scores of a task are equal.

    Raises:
        MmclError: as ``open_sts``; an unknown similarity; vectors that are not finite.
    """
    if similarity not in get_args(PairSimilarity):
        raise MmclError(f"similarity '{similarity}' is not known; {nearest(similarity, get_args(PairSimilarity))}")
    pairs = table if isinstance(table, SentencePairs) else open_sts(table, split=split)
    warn_of_training_pairs(encoder, pairs.name, list(zip(pairs.first, pairs.second, strict=True)), "pairs")
    alike = pair_similarities(encoder, pairs, similarity, prompt)
    similarities, scores = {}, {}
    metrics: dict[str, float] = {}
    drawn: dict[str, np.ndarray] = {}
    for number, task in enumerate(pairs.tasks):
        rows = pairs.task == number
        similarities[task], scores[task] = alike[rows], pairs.score[rows]
        statistic = correlations(task, alike[rows], pairs.score[rows])
        metrics |= bootstrapping.estimate(statistic, int(rows.sum()), resamples=0)[0]
        if bootstrap > 0:  # a seed of its own: tasks are not resampled alike
            values = bootstrapping.distribution(statistic, int(rows.sum()), resamples=bootstrap, seed=[seed, number])
            enough = rows.sum() >= FEWEST
            drawn |= {name: np.where(enough, resampled, np.nan) for name, resampled in values.items()}
    for name in ("spearman", "pearson"):
        metrics[name] = float(np.mean([metrics[f"{task}/{name}"] for task in pairs.tasks]))
        if bootstrap > 0:
            drawn[name] = np.mean([drawn[f"{task}/{name}"] for task in pairs.tasks], axis=0)
    return StsScores(
        metrics=metrics,
        intervals={name: bootstrapping.interval(values) for name, values in drawn.items()},
        similarities=similarities,
        scores=scores,
        similarity=similarity,
        left_out=pairs.left_out,
        data=pairs.fingerprint,
    )


def sts_diagnostics(
    encoder: Encodes, table: Table | SentencePairs, *, split: str | None = "test", prompt: str | None = None
) -> Diagnostics:
    """Alignment of the pairs that mean the same and uniformity of all sentences, as the SimCSE paper has them (§3, §7).

    Pairs with a score above 4 (of 5) belong together; of a table without scores, all do. Uniformity is over the
    sentences of both columns; as the paper's, it includes those that stand in several pairs.

    Raises:
        MmclError: as ``sts``; fewer than two pairs that belong together.
    """
    pairs = table if isinstance(table, SentencePairs) else open_sts(table, split=split)
    vectors = embed_texts(encoder, pairs.first + pairs.second, prompt=prompt)
    positive = np.isnan(pairs.score) | (pairs.score > SAME)
    if positive.sum() < 2:
        raise MmclError(
            f"{pairs.name}: {positive.sum()} pairs have a score above {SAME:g}; alignment is of two or more"
        )
    return diagnose_pairs(vectors[: len(pairs)], vectors[len(pairs) :], positive)


def correlations(task: str, similarities: np.ndarray, scores: np.ndarray) -> bootstrapping.Statistic:
    """Both correlations of a task as a function of how often each pair is drawn."""
    by_rank, by_value = spearman(similarities, scores), pearson(similarities, scores)
    return lambda counts: {f"{task}/spearman": by_rank(counts), f"{task}/pearson": by_value(counts)}


def pair_similarities(
    encoder: Encodes, pairs: SentencePairs, similarity: PairSimilarity = "cosine", prompt: str | None = None
) -> np.ndarray:
    """(N,) float64."""
    normalize = None if similarity == "cosine" else False
    vectors = embed_texts(encoder, pairs.first + pairs.second, prompt=prompt, normalize=normalize)
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(1)))
        sentence = (pairs.first + pairs.second)[row]
        raise MmclError(f"{pairs.name}: the vector of {sentence[:60]!r} has a NaN or infinite number")
    parts = [
        _compare(vectors[start : min(start + _ROWS, len(pairs))], vectors[len(pairs) + start :][:_ROWS], similarity)
        for start in range(0, len(pairs), _ROWS)
    ]
    values = np.concatenate(parts)
    unit = _UNIT * max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny))
    return np.asarray((values / unit).round() * unit)


def _compare(first: np.ndarray, second: np.ndarray, similarity: str) -> np.ndarray:
    first, second = first.astype(np.float64), second.astype(np.float64)
    if similarity == "euclidean":
        return np.asarray(-np.linalg.norm(first - second, axis=1))
    if similarity == "manhattan":
        return np.asarray(-np.abs(first - second).sum(1))
    product = (first * second).sum(1)
    if similarity == "dot":
        return np.asarray(product)
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray(product / np.maximum(length, np.finfo(np.float64).tiny))
