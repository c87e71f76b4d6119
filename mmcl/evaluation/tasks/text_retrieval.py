"""Retrieval of texts by texts: tasks in BEIR's layout, and columns of a table."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.rows import Rows
from mmcl.data.sources.beir import Beir
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.data.sources.trec import write_run
from mmcl.encoding import prompts
from mmcl.evaluation.inputs import cutoffs
from mmcl.evaluation.left_out import WITHOUT_OWN, SelfMatches
from mmcl.evaluation.metrics.tie_order import TIES_BY_ID, Ties
from mmcl.evaluation.tasks.retrieval import Scores, retrieval, retrieval_pairs
from mmcl.evaluation.texts import Encodes, embed_texts, text_identities
from mmcl.evaluation.trained_on import warn_of_training_pairs, warn_of_training_rows
from mmcl.losses.logits.similarity import unit_rows
from mmcl.retrieval.exact import exact_search
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

HEADLINES = ("ndcg@10", "recall@100", "map", "mrr")
"""What two models are compared by on graded judgements."""

RUN_DEPTH = 1000
"""Documents a query in the runs that are written, as TREC asks for."""


def beir_retrieval(
    encoder: Encodes | tuple[Encodes, Encodes],
    beir: Beir,
    ks: Iterable[int] = (1, 10, 100),
    *,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    self_matches: SelfMatches = "drop",
    ties: Ties = "strict",
    bootstrap: int = 1000,
    run: str | Path | None = None,
) -> Scores:
    """Rank the corpus for every query of a task by cosine, exactly.

    BEIR's headline is ``ndcg@10``; the numbers are trec_eval's (see ``mmcl.evaluation.tasks.retrieval``).

    Args:
        encoder: anything with ``encode(texts) -> (N, D)``; or a pair, the first of queries and the second of documents.
        beir: see ``mmcl.data.sources.beir.open_beir``.
        ks: cut-offs.
        query_prompt, document_prompt: names of prompts; by default the model's own ``query``, and ``document``,
            ``passage`` or ``corpus``, where it has such. "" for none.
        self_matches: "drop" leaves the document that has a query's own id out of that query's ranking, as BEIR does;
            "keep" ranks it like any other. See ``mmcl.evaluation.tasks.retrieval``.
        ties: as in ``retrieval``.
        bootstrap: resamples for the intervals, of queries.
        run: a file to write the first 1,000 documents of each query to (or as many as the largest cut-off), as a run
            in TREC's format.

    Raises:
        MmclError: as ``retrieval``, and what ``encode`` raises.
    """
    judged = [
        (beir.queries[query], beir.corpus[document])
        for query in beir.queries
        for document, grade in beir.qrels[query].items()
        if grade > 0 and document in beir.corpus
    ]
    asking, answering = _sides(encoder)
    warn_of_training_pairs(asking, beir.name, judged, "relevant pairs of query and document")
    words = _prompts(asking, answering, query_prompt, document_prompt)
    queries = embed_texts(asking, list(beir.queries.values()), prompt=words[0])
    corpus = embed_texts(answering, list(beir.corpus.values()), prompt=words[1])
    ks = cutoffs(ks)
    asked, answers = (list(beir.queries), queries), (list(beir.corpus), corpus)
    scores = retrieval(asked, answers, beir.qrels, ks, self_matches=self_matches, ties=ties, bootstrap=bootstrap)
    if run is not None:
        write_run(run, best_documents(asked, answers, max(*ks, RUN_DEPTH), self_matches), _name(encoder))
    return replace(scores, data=judged_on(beir.fingerprint, scores))


def best_documents(
    queries: tuple[list[str], np.ndarray], corpus: tuple[list[str], np.ndarray], k: int, self_matches: SelfMatches
) -> dict[str, dict[str, float]]:
    """{query id: {document id: cosine}} of the k best documents of each query, best first.

    Args:
        queries, corpus: ids, and (Q, D) and (C, D) vectors.
        k: documents a query.
        self_matches: whether a document that has the query's own id is among them.
    """
    (asked, vectors), (names, documents) = queries, corpus
    drop = self_matches == "drop"
    positions, _ = exact_search(vectors, documents, k + drop)
    found = {}
    for query, vector, row in zip(asked, vectors, positions, strict=True):
        # In float64: what is equal is so in float32 as well then, in which trec_eval looks for ties.
        near = unit_rows(documents[row].astype(np.float64)) @ unit_rows(vector.astype(np.float64))
        listed = {names[place]: score for place, score in zip(row.tolist(), near.tolist(), strict=True)}
        if drop:
            listed.pop(query, None)
        found[query] = dict(itertools.islice(listed.items(), k))
    return found


def retrieval_of_texts(
    encoder: Encodes | tuple[Encodes, Encodes],
    rows: Rows | ShardRows,
    *,
    query: str,
    document: str,
    ks: Iterable[int] = (1, 5, 10),
    names: tuple[str, str] = ("query", "document"),
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    self_matches: SelfMatches = "keep",
    bootstrap: int = 1000,
) -> dict[str, Scores]:
    """Retrieval both ways between the texts of a column and those of another, one or a list a row.

    Texts that are the same to the model are the same thing: a query that stands in three rows has the documents of all
    three as right answers. Rows without a query or a document are left out, and their number is logged.

    Args:
        encoder, query_prompt, document_prompt: as in ``beir_retrieval``.
        rows: the table.
        query, document: its columns.
        ks: cut-offs.
        names: what the two are called in the keys of the result.
        self_matches: "drop" leaves a document that is the query itself, word for word, out of that query's ranking and
            answers; "keep" ranks it like any other.
        bootstrap: resamples for the intervals, of queries with all their documents.

    Returns:
        {"query_to_document": Scores, "document_to_query": Scores}; query ids are row ids, and "<row id>#<number>" of
        documents.

    Raises:
        MmclError: there is no such column, no usable row, or a row has several queries.
    """
    rows.require([query, document])
    asking, answering = _sides(encoder)
    warn_of_training_rows(asking, rows, texts=(query, document))
    pairs = _read_pairs(rows, query, document)
    words = _prompts(asking, answering, query_prompt, document_prompt)
    same_queries = text_identities(asking, pairs.queries, words[0])
    same_documents = text_identities(answering, pairs.documents, words[1])
    scores = retrieval_pairs(
        embed_texts(asking, pairs.queries, identities=same_queries, prompt=words[0]),
        embed_texts(answering, pairs.documents, identities=same_documents, prompt=words[1]),
        pairs.owner,
        ks,
        names=names,
        ids=(same_queries, same_documents),
        self_matches=self_matches,
        bootstrap=bootstrap,
    )
    return {
        way: replace(
            scores[way],
            query_ids=[called[row] for row in scores[way].query_ids],
            data=judged_on(pairs.fingerprint, scores[way]),
        )
        for way, called in zip(scores, (pairs.query_ids, pairs.document_ids), strict=True)
    }


@dataclass(frozen=True)
class _Pairs:
    """Queries and their documents, from the columns of a table."""

    queries: list[str]  # Q
    documents: list[str]  # T
    owner: np.ndarray  # (T,) the query of each document
    query_ids: list[str]  # Q
    document_ids: list[str]  # T

    @property
    def fingerprint(self) -> str:
        """Equal for equal texts under equal ids."""
        content = json.dumps([self.query_ids, self.queries, self.document_ids, self.documents])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _read_pairs(rows: Rows | ShardRows, query: str, document: str) -> _Pairs:
    """The rows with text in both columns; the number of the others is logged."""
    queries, documents = ([texts_of(value) for value in rows.texts(column)] for column in (query, document))
    if (several := next((row for row in range(len(rows)) if len(queries[row]) > 1), None)) is not None:
        raise MmclError(f"{rows.name}: row {several} has several texts in '{query}'; give each query a row of its own")
    kept = [row for row in range(len(rows)) if queries[row] and documents[row]]
    if not kept:
        raise MmclError(f"{rows.name}: no row has text in both '{query}' and '{document}'")
    if len(kept) < len(rows):
        where = (rows.name, len(rows) - len(kept), len(rows), query, document)
        log.warning("%s: %d of %d rows left out: no text in '%s' or '%s'", *where)
    ids = rows.ids()
    return _Pairs(
        queries=[queries[row][0] for row in kept],
        documents=[text for row in kept for text in documents[row]],
        owner=np.repeat(np.arange(len(kept)), [len(documents[row]) for row in kept]),
        query_ids=[ids[row] for row in kept],
        document_ids=[f"{ids[row]}#{number}" for row in kept for number in range(len(documents[row]))],
    )


def judged_on(data: str, scores: Scores) -> str:
    """``Scores.data`` of scores on this data: it differs, too, where what was ranked does."""
    own = WITHOUT_OWN if scores.self_matches == "drop" and scores.queries_in_corpus else ""
    return data + own + (TIES_BY_ID if scores.ties == "trec_eval" else "")


def _name(encoder: Encodes | tuple[Encodes, Encodes]) -> str:
    return str(getattr(_sides(encoder)[0], "name", "mmcl"))


def _sides(encoder: Encodes | tuple[Encodes, Encodes]) -> tuple[Encodes, Encodes]:
    asking, answering = encoder if isinstance(encoder, tuple) else (encoder, encoder)
    return prompts.for_queries(asking), prompts.for_documents(answering)


def _prompts(
    asking: Encodes, answering: Encodes, query: str | None, document: str | None
) -> tuple[str | None, str | None]:
    """The names that are given, and where none is, what the models choose."""
    return (
        prompts.query_prompt(asking) if query is None else query,
        prompts.document_prompt(answering) if document is None else document,
    )
