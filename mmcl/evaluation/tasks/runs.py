"""How good runs are: lists of documents with scores, from whatever system, judged as trec_eval does."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmcl.data.sources.beir import Beir
from mmcl.data.sources.trec import Run, read_qrels, read_run
from mmcl.evaluation.inputs import check_qrels, cutoffs
from mmcl.evaluation.left_out import SelfMatches, check_self_matches
from mmcl.evaluation.metrics.ranking import MISSING, Judgements
from mmcl.evaluation.metrics.tie_order import Ties, check_ties
from mmcl.evaluation.tasks.retrieval import Scores, scores_of_ranks
from mmcl.evaluation.tasks.text_retrieval import judged_on
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

Found = Mapping[Any, Mapping[Any, float]]


def retrieval_run(
    run: Run | Found | str | Path,
    qrels: Mapping[Any, Mapping[Any, float]] | str | Path,
    ks: Iterable[int] = (1, 10, 100),
    *,
    ties: Ties = "trec_eval",
    self_matches: SelfMatches = "keep",
    complete: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score a run against graded judgements: the numbers of ``trec_eval -c`` or, without ``complete``, ``trec_eval``.

    A query of the run without a judgement is left out and counted. A document that the run does not list was not found.

    Args:
        run: {query id: {document id: score}}, or a TREC run file (``query Q0 document rank score tag``), of which the
            scores count and the ranks do not.
        qrels: {query id: {document id: grade}}, or a file of them, see :func:`mmcl.data.sources.trec.read_qrels`.
        ks: cut-offs.
        ties: of documents with equal scores, "trec_eval" ranks the one first whose id, as a string, comes last, and
            compares scores as float32; "strict" ranks the worst first.
        self_matches: "drop" takes a document that has its query's own id out of the run, as BEIR does.
        complete: whether judged queries that the run lacks score 0; else they are left out and counted.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples.

    Raises:
        MmclError: a file that cannot be read; scores or grades that are not finite numbers; a run and judgements
            without a query in common; a cut-off below 1; an unknown rule for ties or self_matches.
    """
    check_ties(ties)
    check_self_matches(self_matches)
    ks = cutoffs(ks)
    judged = read_qrels(qrels) if isinstance(qrels, str | Path) else qrels
    check_qrels(judged)
    found = _found(run)
    lacking = _lacking(found, judged, complete)
    wanted = [key for key, grades in judged.items() if grades and (complete or key in found)]
    listed = [_without(found.get(key, {}), key, self_matches) for key in wanted]
    ranks, judgements = _ranked(listed, [judged[key] for key in wanted], ties)
    scores = scores_of_ranks(
        ranks,
        judgements,
        ks,
        bootstrap=(bootstrap, seed),
        query_ids=wanted,
        candidates=np.array([len(documents) for documents in listed]),
        corpus=len({document for documents in found.values() for document in documents}),
        skipped_queries=sum(1 for key in found if not judged.get(key)),
        missing_queries=0 if complete else lacking,
        self_matches=self_matches,
        queries_in_corpus=sum(key in found.get(key, ()) for key in wanted),
        ties=ties,
        of_run=True,
    )
    return replace(scores, data=judged_on(hashlib.blake2b(repr(judged).encode(), digest_size=16).hexdigest(), scores))


def _lacking(found: Found, judged: Mapping[Any, Mapping[Any, float]], complete: bool) -> int:
    """How many judged queries a run lacks, which is said. Raises ``MmclError`` if it lacks all."""
    lacking = [key for key, grades in judged.items() if grades and key not in found]
    if len(lacking) == sum(1 for grades in judged.values() if grades):
        raise MmclError(
            f"the run and the judgements have no query in common: the run has ids such as {next(iter(found), None)!r}, "
            f"the judgements such as {next(iter(judged), None)!r}"
        )
    if lacking:
        what = "score 0" if complete else "are left out; --complete (complete=True), as trec_eval -c, scores them 0"
        log.warning("%d of the judged queries are not in the run, such as %r: they %s", len(lacking), lacking[0], what)
    return len(lacking)


def beir_run(
    run: Run | Found | str | Path,
    beir: Beir,
    ks: Iterable[int] = (1, 10, 100),
    *,
    self_matches: SelfMatches = "drop",
    **options: Any,
) -> Scores:
    """Score a run against the judgements of a task in BEIR's layout, on the queries that a model is judged on, so that
    both can be compared; the options are those of :func:`retrieval_run`."""
    qrels = {query: beir.qrels[query] for query in beir.queries}
    scores = retrieval_run(run, qrels, ks, self_matches=self_matches, **options)
    scores = replace(scores, queries_in_corpus=len(beir.corpus.keys() & set(scores.query_ids)))
    return replace(scores, data=judged_on(beir.fingerprint, scores))


def _found(run: Run | Found | str | Path) -> Found:
    if isinstance(run, str | Path):
        run = read_run(run)
    if isinstance(run, Run):
        return run.found
    if not (isinstance(run, Mapping) and all(isinstance(documents, Mapping) for documents in run.values())):
        raise MmclError("run: expected {query id: {document id: score}}, such as {'q1': {'d7': 0.5}}, or a file")
    for query, documents in run.items():
        for document, score in documents.items():
            if not (isinstance(score, int | float | np.number) and np.isfinite(score)):
                raise MmclError(f"run: the score of document {document!r} for query {query!r} is {score!r}, no number")
    return run


def _without(documents: Mapping[Any, float], query: Any, self_matches: SelfMatches) -> Mapping[Any, float]:
    if self_matches == "keep" or query not in documents:
        return documents
    return {key: score for key, score in documents.items() if key != query}


def _ranked(
    listed: Sequence[Mapping[Any, float]], judged: Sequence[Mapping[Any, float]], ties: Ties
) -> tuple[np.ndarray, Judgements]:
    """The ranks (E,) of the relevant documents, and these, of Q queries: first those that are listed."""
    ranks, grades, sizes = [], [], []
    for documents, judgements in zip(listed, judged, strict=True):
        found = np.array([max(judgements.get(key, 0), 0) for key in documents], dtype=np.float64)
        never = [grade for key, grade in judgements.items() if grade > 0 and key not in documents]
        if ties == "trec_eval":
            score = np.array(list(documents.values()), dtype=np.float32)
            ascending = np.lexsort((np.array([str(key) for key in documents], dtype=np.str_), score))
        else:
            ascending = np.lexsort((-found, np.array(list(documents.values()), dtype=np.float64)))
        found = found[ascending[::-1]]
        relevant = np.flatnonzero(found)
        ranks += [relevant + 1.0, np.full(len(never), np.inf)]
        grades += [found[relevant], np.array(never, dtype=np.float64)]
        sizes.append(len(relevant) + len(never))
    nowhere = np.full(sum(sizes), MISSING)
    return np.concatenate(ranks), Judgements(np.append(0, np.cumsum(sizes)), nowhere, np.concatenate(grades))
