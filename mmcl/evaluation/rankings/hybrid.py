"""A search by vectors, by words and by both, judged on the same queries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mmcl.data.sources.beir import Beir
from mmcl.evaluation.inputs import cutoffs
from mmcl.evaluation.left_out import SelfMatches
from mmcl.evaluation.rankings.fusion import Learned, as_run, learn_weights
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.evaluation.tasks.runs import beir_run
from mmcl.retrieval.search.fusion import Fusion, reciprocal_rank
from mmcl.retrieval.search.searcher import Searcher


@dataclass(frozen=True)
class HybridScores:
    """What was measured of a search.

    Attributes:
        scores: of ``vectors``, ``words``, ``rrf`` (reciprocal rank fusion) and ``learned`` (weights, by
            cross-validation).
        learned: the weights.
        fusion: the weights as a search takes them.
    """

    scores: dict[str, Scores]
    learned: Learned
    fusion: Fusion


def judge_hybrid(
    searcher: Searcher,
    beir: Beir,
    ks: Iterable[int] = (1, 10, 100),
    *,
    metric: str = "ndcg@10",
    folds: int = 5,
    self_matches: SelfMatches = "drop",
    bootstrap: int = 1000,
    seed: int = 0,
) -> HybridScores:
    """Judge a search by vectors, by words, by reciprocal rank fusion of both, and by learned weights.

    Args:
        searcher: its index holds the documents of ``beir`` under their ids, and it has a lexical index.
        beir: queries and judgements.
        ks: cut-offs; each ranking is as deep as the largest of them, and at least 100.
        metric, folds, seed: see :func:`mmcl.evaluation.rankings.learn_weights`.
        self_matches, bootstrap: see :func:`mmcl.evaluation.retrieval`.

    Raises:
        MmclError: there is no lexical index, or as the functions named.
    """
    ks = cutoffs(ks)
    names, depth = list(beir.queries), max(Fusion().depth, max(ks) + (self_matches == "drop"))
    vectors, words = searcher.rankings(list(beir.queries.values()), depth)
    both = reciprocal_rank([vectors, words], depth)
    options: dict[str, Any] = {"self_matches": self_matches, "bootstrap": bootstrap, "seed": seed}
    learned = learn_weights([vectors, words], names, beir.qrels, ks, metric=metric, folds=folds, **options)
    scores = {
        name: beir_run(as_run(names, ranking.ids), beir, ks, complete=True, **options)
        for name, ranking in {"vectors": vectors, "words": words, "rrf": both}.items()
    }
    scores["learned"] = replace(learned.scores, data=scores["vectors"].data)
    fusion = Fusion((learned.weights[0], learned.weights[1]), depth, {"data": beir.name, **learned.to_dict()})
    return HybridScores(scores, learned, fusion)
