"""Is one model better than another, or only luckier: paired intervals and tests over the same queries.

Both models answer the same queries, so what counts is the difference on each query, and how easy the query is cancels.

*Interval*: 95% percentile bootstrap of the mean difference. *Test*: paired randomisation (Fisher 1935), the one that
Smucker, Allan and Carterette (2007, "A comparison of statistical significance tests for information retrieval
evaluation") recommend: were the models equal, each query's two values could as well be exchanged, which flips the sign
of its difference; p is how often random signs give a mean difference at least as far from 0. It is enumerated exactly
when all sign patterns are no more than the resamples asked for, else p = (1 + as far) / (1 + resamples), which is never
0 (Phipson and Smyth 2010). For hits, with one query a group, the enumeration is McNemar's exact test.

*Groups*: the captions of one image are not independent, so they are resampled, and their signs are flipped, together.
*Holm* (1979): with many metrics one is bound to look significant; adjusted p-values keep the chance of even one false
"ahead" below 5%. A metric's verdict needs both: an interval without 0 and an adjusted p below 0.05.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mmcl.evaluation.left_out import WITHOUT_OWN
from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics.tie_order import TIES_BY_ID
from mmcl.evaluation.tasks.classification.scores import ClassificationScores
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.evaluation.tasks.text_retrieval import HEADLINES
from mmcl.runtime.errors import MmclError, nearest

Judged: TypeAlias = Scores | ClassificationScores

LEVEL = 0.95
_HEADLINES = ("hit@", "mrr", "top@", "mean_per_class")  # compared unless others are named: each more costs Holm power
_CHUNK_ELEMENTS = 1 << 22  # signs held at once
_TOLERANCE = 1e-9  # of sums that are equal but for the order of their terms


@dataclass(frozen=True)
class Queries:
    """The values that one model got on each of Q queries."""

    ids: list[Any]
    groups: np.ndarray | None  # (Q,) integers, equal for queries that are not independent
    values: dict[str, np.ndarray]  # {metric: (Q,)}, the metric being their mean
    data: str = ""  # equal for models that were judged on the same rows; empty if unknown

    @classmethod
    def of(cls, judged: Judged) -> Queries:
        """Those of the scores; without median_rank, which is no mean."""
        values = {name: value for name, value in judged.per_query.items() if name != "median_rank"}
        return cls(list(judged.query_ids), getattr(judged, "groups", None), values, judged.data)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; ``of_dict`` reads it."""
        return {
            "data": self.data,
            "ids": self.ids,
            "groups": None if self.groups is None else self.groups.tolist(),
            "values": {name: value.tolist() for name, value in self.values.items()},
        }

    @classmethod
    def of_dict(cls, saved: Mapping[str, Any]) -> Queries:
        """What ``to_dict`` gave."""
        groups = saved["groups"]
        values = {name: np.asarray(value, dtype=np.float64) for name, value in saved["values"].items()}
        return cls(
            list(saved["ids"]), None if groups is None else np.asarray(groups, dtype=np.int64), values, saved["data"]
        )


@dataclass(frozen=True)
class Difference:
    """Two models on one metric."""

    a: float
    b: float
    difference: float
    """b − a."""
    low: float
    high: float
    """The 95% interval of the difference."""
    p: float
    """Of the paired randomisation test, two-sided."""
    p_holm: float
    """Adjusted for the number of metrics."""
    queries: int
    groups: int
    """How many of them are independent."""

    @property
    def ahead(self) -> str | None:
        """The model that is ahead beyond chance, "a" or "b"; None if neither."""
        if self.p_holm >= 1 - LEVEL or self.low <= 0 <= self.high:
            return None
        return "b" if self.difference > 0 else "a"


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found."""

    differences: dict[str, Difference]
    """By "<part>/<metric>", such as "text_to_image/hit@1"."""
    resamples: int

    def verdict(self, a: str = "A", b: str = "B") -> str:
        """One line: which model is ahead, and on what."""
        said = []
        for key, name in (("b", b), ("a", a)):
            metrics = [metric for metric, difference in self.differences.items() if difference.ahead == key]
            if metrics:
                said.append(f"{name} is ahead beyond the interval on {', '.join(metrics)}")
        open_ = sum(difference.ahead is None for difference in self.differences.values())
        if not said:
            of = f"any of the {open_} metrics" if open_ > 1 else next(iter(self.differences))
            return f"no difference between {a} and {b} is beyond chance on {of}"
        return "; ".join(said) + (f"; {open_} of {len(self.differences)} metrics are undecided" if open_ else "")

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = {name: {**asdict(row), "ahead": row.ahead} for name, row in self.differences.items()}
        return {"metrics": rows, "resamples": self.resamples, "level": LEVEL, "verdict": self.verdict()}


def compare(
    a: Mapping[str, Judged | Queries],
    b: Mapping[str, Judged | Queries],
    metrics: Sequence[str] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models that were judged on the same queries.

    Args:
        a, b: {part: scores}, such as what ``retrieval_pairs`` gives, or {"zero_shot": ZeroShotScores}.
        metrics: the metrics to compare, such as ["hit@1", "ndcg@10"]; by default hit@k, mrr, top@k and mean_per_class.
        resamples: of the bootstrap and of the test.
        seed: of both.

    Raises:
        MmclError: parts, queries or metrics that only one of them has, or fewer than one resample.
    """
    if resamples < 1:
        raise MmclError(f"compare: resamples is {resamples}; give a number from 1 up")
    if set(a) != set(b):
        raise MmclError(f"compare: A was judged on {_list(a)}, B on {_list(b)}: judge both on the same")
    known = {name for judged in a.values() for name in _queries(judged).values}
    for name in metrics or ():
        if name not in known:
            raise MmclError(f"compare: no metric '{name}' was measured; {nearest(name, known)}")
    drafts: dict[str, Difference] = {}
    for part in a:
        for metric, row in _part(part, _queries(a[part]), _queries(b[part]), metrics, resamples, seed).items():
            drafts[f"{part}/{metric}"] = row
    if not drafts:
        raise MmclError("compare: A and B have no metric in common: judge both with the same cut-offs")
    return adjusted(drafts, resamples)


def headlines_of(scores: Mapping[str, Judged | Queries]) -> list[str] | None:
    """The metrics to compare graded judgements by, of those that were measured; None for ``compare``'s own choice."""
    graded = scores.get("query_to_document")
    if graded is None or "document_to_query" in scores:
        return None
    values = _queries(graded).values
    return [name for name in HEADLINES if name in values] or None


def adjusted(drafts: Mapping[str, Difference], resamples: int) -> Comparison:
    """The comparison on all the metrics, with p-values that are adjusted for their number."""
    adjusted_p = holm([row.p for row in drafts.values()])
    return Comparison(
        {name: replace(row, p_holm=p) for (name, row), p in zip(drafts.items(), adjusted_p, strict=True)}, resamples
    )


def sign_flip_test(
    differences: np.ndarray, groups: np.ndarray | None = None, *, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Two-sided p-values of the hypothesis that each difference is as likely as its opposite.

    Args:
        differences: (Q, M) paired differences on M metrics.
        groups: (Q,) integers; the signs of a group are flipped together.
        resamples: random sign patterns; where there are no more patterns than that, all are enumerated instead.
        seed: of the patterns.

    Returns:
        (M,) p-values.
    """
    totals = differences if groups is None else _group_sums(differences, groups)
    observed = np.abs(totals.sum(0))
    undecided = totals[(totals != 0).any(1)]  # flipping a 0 changes nothing
    far = observed * (1 - _TOLERANCE) - _TOLERANCE
    count = len(undecided)
    if 2**count <= resamples:
        signs = 1 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return np.asarray((np.abs(signs @ undecided) >= far).mean(0))
    rng = np.random.default_rng(seed)
    as_far, step = np.zeros(len(observed)), max(1, _CHUNK_ELEMENTS // count)
    for start in range(0, resamples, step):
        signs = rng.integers(0, 2, (min(step, resamples - start), count), dtype=np.int8) * 2.0 - 1
        as_far += (np.abs(signs @ undecided) >= far).sum(0)
    return np.asarray((1 + as_far) / (1 + resamples))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjustment: the i-th smallest of n p-values times n − i + 1, made monotone, at most 1."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p, dtype=np.float64)[order] * (len(order) - np.arange(len(order))))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]


def read_per_query(path: str | Path) -> dict[str, Queries]:
    """The parts of a file that ``mmcl eval retrieval`` or ``zero-shot`` wrote with ``--json FILE --per-query``.

    Raises:
        MmclError: no such file, or one without the values of single queries.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = saved if "per_query" not in saved else {"zero_shot": saved}
        found = {
            name: Queries.of_dict(part["per_query"])
            for name, part in parts.items()
            if isinstance(part, dict) and "per_query" in part
        }
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MmclError(f"{path}: no such file") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MmclError(f"{path}: not a file that mmcl eval wrote with --json --per-query ({error!r})") from error
    if not found:
        raise MmclError(f"{path}: no values of single queries in it; write it with --json FILE --per-query")
    return found


def _part(
    part: str, a: Queries, b: Queries, metrics: Sequence[str] | None, resamples: int, seed: int
) -> dict[str, Difference]:
    if a.ids != b.ids or a.data != b.data:
        for option, suffix in (("--self-matches", WITHOUT_OWN), ("--ties", TIES_BY_ID)):
            if a.data != b.data and a.data.replace(suffix, "") == b.data.replace(suffix, ""):
                raise MmclError(f"compare: {part}: A and B differ in {option}: judge both with the same {option}")
        what = f"{len(a.ids)} and {len(b.ids)} queries" if len(a.ids) != len(b.ids) else "different queries or answers"
        raise MmclError(f"compare: {part} has {what} in A and B: judge both on the same rows")
    shared = [name for name in a.values if name in b.values]
    wanted = [name for name in shared if (name.startswith(_HEADLINES) if metrics is None else name in metrics)]
    if not wanted:
        return {}
    first, second = (np.stack([side.values[name] for name in wanted], axis=1) for side in (a, b))  # (Q, M)
    difference = second - first
    groups = np.arange(len(difference)) if a.groups is None else np.unique(a.groups, return_inverse=True)[1]
    totals, sizes = _group_sums(difference, groups), np.bincount(groups).astype(np.float64)

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(wanted, (counts @ totals / (counts @ sizes)[:, None]).T, strict=True))

    means, intervals = bootstrapping.estimate(statistic, len(totals), resamples=resamples, seed=seed, level=LEVEL)
    p = sign_flip_test(totals, resamples=resamples, seed=seed)
    return {
        name: Difference(
            a=float(first[:, column].mean()),
            b=float(second[:, column].mean()),
            difference=means[name],
            low=intervals[name][0],
            high=intervals[name][1],
            p=float(p[column]),
            p_holm=float("nan"),  # known when all metrics are
            queries=len(difference),
            groups=len(totals),
        )
        for column, name in enumerate(wanted)
    }


def _group_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(G, M) sums of (Q, M) values over the groups."""
    sums = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def _queries(judged: Judged | Queries) -> Queries:
    return judged if isinstance(judged, Queries) else Queries.of(judged)


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
