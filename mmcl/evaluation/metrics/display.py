"""How the metrics of an evaluator are shown: which lead, on which scale, with a bar or a curve, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Display:
    """How a report shows metrics. Names may be without their cut-offs: ``hit`` stands for ``hit@1`` and ``hit@5``.

    Attributes:
        leading: names of the metrics to show first, in groups: the first group of which any was measured is shown.
        fractions: names of those on the scale from 0 to 1, which are shown in percent and get bars.
        correlations: names of those on the scale from -1 to 1, which get bars from 0 up.
        curves: names of those to show over the steps, each at its first and its last cut-off. Where none of them was
            measured, all are shown but those of ``sentences``.
        sentences: name to the beginning of a sentence with the metric's value, beside the leading ones.
        lower_is_better: names of those of which the lower value is the better one.
        definitions: names, and what a report says of them.
    """

    leading: tuple[tuple[str, ...], ...] = ()
    fractions: tuple[str, ...] = ()
    correlations: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    sentences: Mapping[str, str] = field(default_factory=dict)
    lower_is_better: tuple[str, ...] = ()
    definitions: tuple[tuple[str, str], ...] = ()

    def is_fraction(self, name: str) -> bool:
        """Whether a metric lies on the scale from 0 to 1 by its meaning, not by accident."""
        return _among(name, self.fractions)

    def has_bar(self, name: str) -> bool:
        """Whether 1 is the greatest value that a metric can have."""
        return _among(name, (*self.fractions, *self.correlations))

    def is_lower_better(self, name: str) -> bool:
        """Whether the lower of two values of a metric is the better one."""
        return _among(name, self.lower_is_better)

    def leads(self, names: Iterable[str]) -> list[str]:
        """Of the metrics of one direction, those to show first."""
        names = list(names)
        groups = ([name for name in names if _among(name, group)] for group in self.leading)
        return next(filter(None, groups), [])

    def over_steps(self, names: Iterable[str]) -> list[str]:
        """Of the metrics of one source, those to show over the steps."""
        names = list(names)
        wanted: set[str] = set()
        for curve in self.curves:
            cut = sorted((name for name in names if _among(name, (curve,))), key=_cutoff)
            wanted |= {*cut[:1], *cut[-1:]}
        return [name for name in names if (name in wanted if wanted else not _among(name, self.sentences))]

    def sentence(self, name: str) -> str | None:
        """The beginning of a sentence with a metric's value; None for a metric without one."""
        return self.sentences.get(name)


RANKING = Display(
    leading=(("hit",), ("hit", "recall", "precision", "ndcg", "map", "mrr")),
    fractions=("hit", "recall", "precision", "ndcg", "map", "mrr"),
    curves=("hit",),
    sentences={"median_rank": "Median rank of the first right answer"},
    lower_is_better=("median_rank",),
    definitions=(
        (
            "hit@k",
            "The share of queries with at least one right answer among the first k. Papers on images and text call it "
            "R@k.",
        ),
        (
            "recall@k",
            "The share of a query's right answers that stand among the first k, averaged over the queries. It equals "
            "hit@k only\nwhere every query has one right answer.",
        ),
        (
            "precision@k, ndcg@k, map@k, mrr",
            "As in trec_eval: the right share of the first k; gains discounted by log₂(rank + 1), over those of the "
            "best order;\nprecision averaged over the ranks of the right answers; one over the rank of the first right "
            "answer.",
        ),
        ("Median rank", "The median over the queries of the rank of the first right answer; 1 is best."),
    ),
)
"""Of what :mod:`mmcl.evaluation.metrics.ranks` measures."""

CORRELATION = Display(leading=(("spearman", "pearson"),), correlations=("spearman", "pearson"))
"""Of what :mod:`mmcl.evaluation.metrics.correlation` measures."""

ACCURACY = Display(
    leading=(("top",), ("mean_per_class",)),
    fractions=("top", "mean_per_class"),
    curves=("top",),
    definitions=(
        (
            "top@k, mean_per_class",
            "The share of images whose class is among the first k answers; top@1 of each class, averaged over the "
            "classes.",
        ),
    ),
)
"""Of a classification."""


def _among(name: str, names: Iterable[str]) -> bool:
    return any(known in (name, name.partition("@")[0]) for known in names)


def _cutoff(name: str) -> int:
    return int(name.partition("@")[2] or 0)
