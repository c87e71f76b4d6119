"""Retrieval of texts by texts: tasks in BEIR's layout, and columns of a table."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.rows import Rows
from mmcl.data.sources.beir import Beir
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding import prompts
from mmcl.evaluation.left_out import WITHOUT_OWN, SelfMatches
from mmcl.evaluation.tasks.retrieval import Scores, retrieval, retrieval_pairs
from mmcl.evaluation.texts import Encodes, embed_texts, text_identities
from mmcl.evaluation.trained_on import warn_of_training_pairs, warn_of_training_rows
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

HEADLINES = ("ndcg@10", "recall@100", "map", "mrr")
"""What two models are compared by on graded judgements."""


def beir_retrieval(
    encoder: Encodes | tuple[Encodes, Encodes],
    beir: Beir,
    ks: Iterable[int] = (1, 10, 100),
    *,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    self_matches: SelfMatches = "drop",
    bootstrap: int = 1000,
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
        bootstrap: resamples for the intervals, of queries.

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
    scores = retrieval(
        (list(beir.queries), queries),
        (list(beir.corpus), corpus),
        beir.qrels,
        ks,
        self_matches=self_matches,
        bootstrap=bootstrap,
    )
    return replace(scores, data=_judged_on(beir.fingerprint, scores))


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
            data=_judged_on(pairs.fingerprint, scores[way]),
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


def _judged_on(data: str, scores: Scores) -> str:
    """Differs, too, where what was ranked does."""
    return f"{data}{WITHOUT_OWN}" if scores.self_matches == "drop" and scores.queries_in_corpus else data


def _sides(encoder: Encodes | tuple[Encodes, Encodes]) -> tuple[Encodes, Encodes]:
    return encoder if isinstance(encoder, tuple) else (encoder, encoder)


def _prompts(
    asking: Encodes, answering: Encodes, query: str | None, document: str | None
) -> tuple[str | None, str | None]:
    """The names that are given, and where none is, what the models choose."""
    return (
        prompts.query_prompt(asking) if query is None else query,
        prompts.document_prompt(answering) if document is None else document,
    )
