"""How metrics are shown, by their names: on which scale, with a bar or a curve, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable

_FRACTIONS = ("hit", "recall", "precision", "ndcg", "map", "mrr", "top", "mean_per_class")
_CORRELATIONS = ("spearman", "pearson")
_RANKS = ("median_rank",)

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "hit@k",
        "The share of queries with at least one right answer among the first k. Papers on images and text call it R@k.",
    ),
    (
        "recall@k",
        "The share of a query's right answers that stand among the first k, averaged over the queries. It equals hit@k "
        "only\nwhere every query has one right answer.",
    ),
    (
        "precision@k, ndcg@k, map@k, mrr",
        "As in trec_eval: the right share of the first k; gains discounted by log₂(rank + 1), over those of the best "
        "order;\nprecision averaged over the ranks of the right answers; one over the rank of the first right answer.",
    ),
    ("Median rank", "The median over the queries of the rank of the first right answer; 1 is best."),
)
"""Names, and what a report says of them."""


def is_fraction(name: str) -> bool:
    """Whether a metric lies on the scale from 0 to 1 by its meaning, not by accident."""
    return name.split("@")[0] in _FRACTIONS


def with_bars(names: Iterable[str]) -> list[str]:
    """Of the metrics of one direction, those to show as bars: hit rates; or every fraction where there are none; or
    correlations."""
    names = list(names)
    fractions = list(filter(is_fraction, names))
    return list(filter(_is_hit, fractions)) or fractions or [name for name in names if name in _CORRELATIONS]


def with_curves(names: Iterable[str]) -> list[str]:
    """Of the metrics of one source, those to show over the steps: hit rates at the first and the last cut-off; or all
    but ranks, where there are none."""
    names = list(names)
    hits = sorted(filter(_is_hit, names), key=lambda name: int(name.partition("@")[2]))
    wanted = {hits[0], hits[-1]} if hits else set(names) - set(_RANKS)
    return [name for name in names if name in wanted]


def in_words(name: str) -> str | None:
    """The beginning of a sentence with a metric's value, beside the bars; None for a metric without one."""
    return "Median rank of the first right answer" if name in _RANKS else None


def _is_hit(name: str) -> bool:
    return name.startswith("hit@")
