"""Retrieval metrics from ranks: no scores, no lists of documents, no loop over queries.

Definitions and numbers are trec_eval's (``success``, ``recall``, ``P``, ``ndcg_cut``, ``map_cut``, ``recip_rank``).
With R relevant documents, graded g > 0, at ranks r:

=============  =====================================================================================================
hit@k          1 if any r ≤ k (what image–text papers call R@k)
recall@k       how many r ≤ k, over R
precision@k    how many r ≤ k, over k
ndcg@k         Σ g / log2(r + 1) over r ≤ k, over the same sum for the best order (Järvelin and Kekäläinen 2002,
               linear gain)
map@k          Σ (relevant up to r) / r over r ≤ k, over R
map            the same over all r
mrr            1 / smallest r, at whatever depth
median_rank    median over the queries of the smallest r
=============  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmcl.evaluation.metrics.bootstrap import Statistic, means, medians
from mmcl.evaluation.metrics.ranking import Judgements


def per_query(ranks: np.ndarray, judgements: Judgements, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric of every query.

    Args:
        ranks: (E,) 1-based ranks of the relevant documents, infinite where one can never be found.
        judgements: whose documents the ranks are of.
        ks: cut-offs.

    Returns:
        {metric: (Q,) float64}, 0 for a query to which nothing is relevant. Under ``median_rank`` stands the rank of the
        query's first relevant document, infinite without one.
    """
    some = np.flatnonzero(judgements.sizes)
    if len(some) < len(judgements.sizes):
        values = per_query(ranks, judgements.of_queries(some), ks)
        nothing = {name: np.inf if name == "median_rank" else 0.0 for name in values}
        padded = {name: np.full(len(judgements.sizes), nothing[name]) for name in values}
        for name, value in values.items():
            padded[name][some] = value
        return padded
    query, starts, size = judgements.queries, judgements.offsets[:-1], judgements.sizes
    by_rank = np.lexsort((ranks, query))
    ranks, gains = ranks[by_rank], judgements.grades[by_rank]
    ideal_gains = gains[np.lexsort((-gains, query))]
    position = np.arange(1, len(query) + 1) - np.repeat(starts, size)  # among the query's own relevant documents

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(query, weights=values, minlength=len(size))

    first = ranks[starts]
    table: dict[str, dict[int, np.ndarray]] = {name: {} for name in ("hit", "recall", "precision", "ndcg", "map")}
    for k in ks:
        within = ranks <= k
        found = total(within)
        table["hit"][k] = (first <= k).astype(np.float64)
        table["recall"][k] = found / size
        table["precision"][k] = found / k
        table["ndcg"][k] = total(within * gains / np.log2(ranks + 1)) / total(
            (position <= k) * ideal_gains / np.log2(position + 1)
        )
        table["map"][k] = total(within * position / ranks) / size
    values = {f"{name}@{k}": value for name, row in table.items() for k, value in row.items()}
    return {**values, "map": total(position / ranks) / size, "mrr": 1 / first, "median_rank": first}


def statistic(values: dict[str, np.ndarray]) -> Statistic:
    """The metrics of a set of queries as a function of how often each query is in it: what the bootstrap resamples."""
    averaged = means({name: value for name, value in values.items() if name != "median_rank"})
    median = medians({"median_rank": values["median_rank"]})
    return lambda counts: averaged(counts) | median(counts)


def chance(found: np.ndarray, relevant: np.ndarray, candidates: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """What a random order of the corpus is expected to score.

    Args:
        found: (Q,) how many relevant documents of each query are ranked.
        relevant: (Q,) how many there are in all.
        candidates: (Q,) how many documents are ranked for each query.
        ks: cut-offs.

    Returns:
        {metric: expectation} for hit@k (hypergeometric), recall@k and precision@k.
    """
    cases, which = np.unique(np.stack([found, candidates], axis=1), axis=0, return_inverse=True)
    sizes, corpora = cases.T
    share = found / np.maximum(relevant, 1)
    table: dict[str, dict[int, float]] = {"hit": {}, "recall": {}, "precision": {}}
    for k in ks:
        depth = np.minimum(k, candidates)
        # Documents to draw from at each rank, if none so far is relevant; none are left beyond the last.
        left = corpora[:, None] - np.arange(min(k, corpora.max(initial=0)))
        with np.errstate(divide="ignore"):  # fewer left than are relevant: a miss is impossible, its logarithm −∞
            log_miss = np.log1p(-np.minimum(sizes[:, None] / np.maximum(left, 1), 1)).sum(1, where=left > 0)
        table["hit"][k] = float(np.mean(-np.expm1(log_miss)[which.reshape(-1)]))
        reached = depth / np.maximum(candidates, 1)
        table["recall"][k] = float(np.mean(share * reached))
        table["precision"][k] = float(np.mean(found * reached) / k)
    return {f"{name}@{k}": value for name, row in table.items() for k, value in row.items()}
