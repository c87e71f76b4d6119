"""How well queries find their documents."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import scipy.sparse
import torch

from mmcl.evaluation.inputs import Identified, check_qrels, codes, cutoffs, matrix, owners, same_width, with_ids
from mmcl.evaluation.left_out import OwnMatches, SelfMatches, check_self_matches, excluded_pairs, matches_both_ways
from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics import ranks as measures
from mmcl.evaluation.metrics.display import RANKING, Display
from mmcl.evaluation.metrics.ranking import MISSING, Judgements, Vectors, relevant_ranks
from mmcl.evaluation.metrics.tie_order import Ties, check_ties, places_in_ties
from mmcl.losses.logits.similarity import Similarity
from mmcl.runtime.errors import MmclError

Ids: TypeAlias = tuple[Iterable[Hashable] | None, Iterable[Hashable] | None]
"""Of both sides of pairs: values that are equal where rows are the same thing."""


@dataclass(frozen=True)
class Scores:
    """What ``retrieval`` measured. Keys are hit@k, recall@k, precision@k, ndcg@k, map@k, map, mrr and
    median_rank; all are fractions in [0, 1] but the last, which is a rank from 1 up."""

    metrics: dict[str, float]
    """The mean over the queries; for median_rank the median."""
    intervals: dict[str, tuple[float, float]]
    """95% bootstrap intervals over the queries; empty if no resamples were asked for."""
    per_query: dict[str, np.ndarray]
    """(Q,) values of each metric; under median_rank the rank of the query's first relevant document."""
    query_ids: list[Any]
    """The Q queries that were scored, in the order of ``per_query``; row numbers where queries have no ids."""
    relevant: np.ndarray
    """(Q,) how many relevant documents each query has."""
    found: np.ndarray
    """(Q,) how many of these are in the corpus."""
    candidates: np.ndarray
    """(Q,) how many documents of the corpus are ranked for each query: all, but for the query itself where that is
    left out."""
    ks: tuple[int, ...]
    corpus: int
    """Number of documents."""
    skipped_queries: int = 0
    """Queries left out because nothing is judged for them, or nothing belongs to them."""
    missing_queries: int = 0
    """Queries that the judgements name but that have no vector: left out."""
    groups: np.ndarray | None = None
    """(Q,) integers that are equal for queries that are not independent, such as the captions of one image."""
    data: str = ""
    """Equal for models that were judged on the same rows of a table; else empty."""
    self_matches: SelfMatches = "keep"
    """What was done about queries that stand in the corpus themselves."""
    queries_in_corpus: int = 0
    """How many of the queries that were scored do so."""
    ties: Ties = "strict"
    """Which of equal documents ranks first."""
    of_run: bool = False
    """Whether a run was judged, which lists the first documents alone: ``corpus`` and ``candidates`` count these."""
    clip_benchmark: dict[str, float] = field(default_factory=dict)
    """The metrics of ``clip_benchmark`` by its names, where rows of a table are judged; else empty."""

    display: ClassVar[Display] = RANKING
    """How a report shows the metrics."""

    @property
    def queries(self) -> int:
        """Number of queries scored."""
        return len(self.query_ids)

    @property
    def missing_documents(self) -> int:
        """Relevant documents that the corpus lacks, summed over the queries: counted as never found."""
        return int((self.relevant - self.found).sum())

    @property
    def queries_without_relevant(self) -> int:
        """Queries scored 0 whatever the model, since all that is judged for them is judged irrelevant."""
        return int((self.relevant == 0).sum())

    @property
    def size(self) -> str:
        """How many queries against how many candidates, in words."""
        if self.of_run:
            return f"n = {self.queries:,} queries, a run of at most {self.candidates.max(initial=0):,} documents each"
        return f"n = {self.queries:,} queries, {self.corpus:,} candidates"

    @property
    def remarks(self) -> list[str]:
        """What was left out or counted as not found, in words."""
        without, corpus = ("results", "run") if self.of_run else ("a vector", "corpus")
        counted = {
            "queries left out because nothing is relevant to them": self.skipped_queries,
            f"judged queries without {without}, left out": self.missing_queries,
            f"relevant documents missing from the {corpus}, counted as never found": self.missing_documents,
        }
        return [f"{number:,} {what}" for what, number in counted.items() if number]

    def chance(self) -> dict[str, float]:
        """What a random order of the corpus is expected to score: hit@k, recall@k and precision@k; of a run nothing,
        which does not say what else there was."""
        return {} if self.of_run else measures.chance(self.found, self.relevant, self.candidates, self.ks)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values of single queries, ready for JSON."""
        return {
            "metrics": dict(self.metrics),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "chance": self.chance(),
            "clip_benchmark": dict(self.clip_benchmark),
            "queries": self.queries,
            "corpus": self.corpus,
            "skipped_queries": self.skipped_queries,
            "missing_queries": self.missing_queries,
            "missing_documents": self.missing_documents,
            "queries_without_relevant": self.queries_without_relevant,
            "ties": self.ties,
            "self_matches": self.self_matches,
            "queries_in_corpus": self.queries_in_corpus,
        }


def retrieval(
    queries: Identified,
    corpus: Identified,
    qrels: Mapping[Any, Mapping[Any, float]],
    ks: Iterable[int] = (1, 5, 10),
    *,
    similarity: Similarity = "cosine",
    self_matches: SelfMatches = "keep",
    ties: Ties = "strict",
    seen: Mapping[Any, Iterable[Hashable]] = MappingProxyType({}),
    bootstrap: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Scores:
    """Rank the whole corpus for every query and score the ranks against graded judgements.

    The numbers are trec_eval's, but for ties, which never help unless ``ties`` says so. A query without a judgement is
    left out and counted; one whose judgements are all of grade 0 or below scores 0. A relevant document that the corpus
    lacks counts as never found, so it lowers recall, ndcg and map; in median_rank it stands one place after the whole
    corpus.

    Args:
        queries: {query id: (D,) vector}, a pair (ids, (Q, D) array), or an array alone, whose ids are "0", "1", ….
        corpus: the same of documents, C in all.
        qrels: {query id: {document id: grade}}. Grades above 0 are relevant, the higher the better.
        ks: cut-offs of the metrics at k.
        similarity: "cosine", "dot" or "euclidean".
        self_matches: what becomes of the document that has a query's own id: "keep" ranks it like any other, "drop"
            leaves it out for that query. The latter is BEIR's rule (``ignore_identical_ids``), and MTEB's for ArguAna
            and Quora, whose queries stand in their corpus. As there, its grade, if it has one, stays: never found.
        ties: of equal documents, "strict" ranks the worst first, so that a tie never helps (see
            ``mmcl.evaluation.metrics.ranking``), and "trec_eval" the one whose id, as a string, comes last.
        seen: {query id: document ids} that are not ranked for the query, as if the corpus lacked them.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples.
        device: where to rank; by default where ``queries`` lie if they are a tensor, else the CPU.

    Raises:
        MmclError: vectors that are empty, not finite or of different widths; doubled ids; a cut-off below 1; a grade
            that is not a finite number; judgements that name none of the queries or none of the documents; an unknown
            rule for self_matches or ties.
    """
    check_self_matches(self_matches)
    check_ties(ties)
    check_qrels(qrels)
    ks = cutoffs(ks)
    query_ids, query_vectors = with_ids("queries", queries)
    corpus_ids, corpus_vectors = with_ids("corpus", corpus)
    same_width(("queries", query_vectors), ("documents", corpus_vectors))
    known = set(query_ids)
    return _score(
        _Search(
            queries=query_vectors,
            corpus=corpus_vectors,
            judgements=_judgements(qrels, query_ids, corpus_ids),
            scored=np.array([bool(qrels.get(key)) for key in query_ids]),
            matches=OwnMatches.of(query_ids, corpus_ids, self_matches),
            seen=excluded_pairs(seen, query_ids, corpus_ids),
            query_ids=query_ids,
            missing=sum(1 for key, grades in qrels.items() if key not in known and grades),
            ties=ties,
            tie_order=None if ties == "strict" else places_in_ties(corpus_ids),
        ),
        _Measure(ks, similarity, bootstrap, seed, device),
    )


def retrieval_pairs(
    image: Vectors,
    text: Vectors,
    image_of_text: Sequence[int] | np.ndarray | None = None,
    ks: Iterable[int] = (1, 5, 10),
    *,
    names: tuple[str, str] = ("image", "text"),
    ids: Ids = (None, None),
    similarity: Similarity = "cosine",
    self_matches: SelfMatches = "keep",
    bootstrap: int = 1000,
    device: str | torch.device | None = None,
) -> dict[str, Scores]:
    """Retrieval both ways between two kinds of things that belong together.

    An image may have several texts: 2 images and 4 texts, of which the first two describe the first image, are
    ``image_of_text=[0, 0, 1, 1]``. Then each image has two right answers among the 4 texts, and each text has one
    among the 2 images. An image without a text is left out as a query and counted, and stays in the corpus.

    Rows can be the same thing: if rows 0 and 3 of the texts both read "a cat", then text 3 is as right an answer for
    image 0 as text 0 is. ``ids`` (of texts the captions themselves, or their hashes) say which are.

    Intervals resample images, each with all its texts, because the texts of one image are not independent.

    Args:
        image: (N, D) vectors.
        text: (T, D) vectors.
        image_of_text: (T,) the row of each text's image; by default text j belongs to image j.
        ks: cut-offs.
        names: what the two kinds are called in the keys of the result.
        ids: (N,) values of the images and (T,) of the texts that are equal where rows are the same thing; None where no
            two are.
        similarity: as in ``retrieval``.
        self_matches: of two kinds that can be the same thing, such as questions and questions, where ``ids`` name both:
            "drop" leaves a thing out of its own ranking, and no answer is right for itself.
        bootstrap, device: as in ``retrieval``.

    Returns:
        {"image_to_text": Scores, "text_to_image": Scores}; query ids are row numbers.

    Raises:
        MmclError: as ``retrieval``; an image number out of range; lengths that do not fit.
    """
    check_self_matches(self_matches)
    image, text = matrix(names[0], image), matrix(names[1], text)
    same_width((f"{names[0]} vectors", image), (f"{names[1]} vectors", text))
    owner = owners(image_of_text, len(image), len(text), names)
    image_ids, text_ids = (None if values is None else _list(values) for values in ids)
    matches = matches_both_ways(image_ids, text_ids, self_matches, names)
    image_class = np.arange(len(image)) if image_ids is None else codes(f"ids of {names[0]}", image_ids, len(image))
    text_class = np.arange(len(text)) if text_ids is None else codes(f"ids of {names[1]}", text_ids, len(text))
    linked = _incidence(image_class[owner], text_class, image_class.max() + 1, text_class.max() + 1)
    of_image, of_text = _expand(linked, text_class, image_class), _expand(linked.T.tocsr(), image_class, text_class)
    forth, back = f"{names[0]}_to_{names[1]}", f"{names[1]}_to_{names[0]}"
    ways = {
        forth: _Search.of_answers(forth, image, text, of_image, matches[0], image_class),
        back: _Search.of_answers(back, text, image, of_text, matches[1], image_class[owner]),
    }
    measure = _Measure(cutoffs(ks), similarity, bootstrap, 0, device)
    return {way: _score(search, measure) for way, search in ways.items()}


def _list(values: Iterable[Hashable]) -> list[Hashable]:
    return values.tolist() if isinstance(values, np.ndarray | torch.Tensor) else list(values)


@dataclass(frozen=True)
class _Search:
    """Queries, what they search in, and the right answers."""

    queries: Vectors  # (Q, D)
    corpus: Vectors  # (C, D)
    judgements: Judgements
    scored: np.ndarray  # (Q,) bool, whether a query counts; all do that something is relevant to
    matches: OwnMatches
    query_ids: Sequence[Any]
    groups: np.ndarray | None = None  # (Q,) see ``Scores.groups``
    missing: int = 0  # queries that the judgements name but that have no vector
    seen: np.ndarray | None = None  # (2, P) more queries and documents that are not ranked for them
    ties: Ties = "strict"
    tie_order: np.ndarray | None = None  # (C,) places of equal documents

    @property
    def left_out(self) -> np.ndarray:
        """(2, P) all queries and documents that are not ranked for them, each once."""
        if self.seen is None:
            return self.matches.left_out
        return np.unique(np.concatenate([self.matches.left_out, self.seen], axis=1), axis=1)

    @classmethod
    def of_answers(
        cls,
        way: str,
        queries: Vectors,
        corpus: Vectors,
        judgements: Judgements,
        matches: OwnMatches,
        groups: np.ndarray,
    ) -> _Search:
        """One in which each query with an answer beside itself counts; queries are called by their rows."""
        judgements = judgements.without(matches.left_out, len(corpus))
        if not judgements.sizes.any():
            raise MmclError(f"{way}: no query has an answer but itself; set self_matches to 'keep'")
        return cls(queries, corpus, judgements, judgements.sizes > 0, matches, range(len(queries)), groups)


@dataclass(frozen=True)
class _Measure:
    """What is measured of a search, and how; the fields are arguments of ``retrieval``."""

    ks: tuple[int, ...]
    similarity: Similarity
    bootstrap: int
    seed: int
    device: str | torch.device | None


def _score(search: _Search, measure: _Measure) -> Scores:
    queries, corpus, left_out = search.queries, search.corpus, search.left_out
    options: dict[str, Any] = {"similarity": measure.similarity, "device": measure.device}
    ranks = relevant_ranks(queries, corpus, search.judgements, left_out=left_out, tie_order=search.tie_order, **options)
    scored = np.flatnonzero(search.scored)
    return scores_of_ranks(
        ranks,
        search.judgements.of_queries(scored),
        measure.ks,
        bootstrap=(measure.bootstrap, measure.seed),
        query_ids=[search.query_ids[row] for row in scored.tolist()],
        candidates=len(corpus) - np.bincount(left_out[0], minlength=len(queries))[scored],
        corpus=len(corpus),
        skipped_queries=len(queries) - len(scored),
        missing_queries=search.missing,
        groups=None if search.groups is None else np.unique(search.groups[scored], return_inverse=True)[1],
        ties=search.ties,
        self_matches=search.matches.rule,
        queries_in_corpus=len(np.intersect1d(search.matches.rows, scored)),
    )


def scores_of_ranks(
    ranks: np.ndarray, judged: Judgements, ks: tuple[int, ...], *, bootstrap: tuple[int, int], **known: Any
) -> Scores:
    """What ranks come to.

    Args:
        ranks: (E,) of the relevant documents, see :func:`mmcl.evaluation.metrics.ranks.per_query`.
        judged: the relevant documents of Q queries.
        ks: cut-offs.
        bootstrap: number of resamples for the intervals, and their seed.
        known: the other fields of :class:`Scores`, ``candidates`` and ``query_ids`` among them.
    """
    values = measures.per_query(ranks, judged, ks)
    values["median_rank"] = np.minimum(values["median_rank"], known["candidates"] + 1)
    resamples, seed = bootstrap
    metrics, intervals = bootstrapping.estimate(
        measures.statistic(values), len(judged.sizes), resamples=resamples, seed=seed, groups=known.get("groups")
    )
    found = np.bincount(judged.queries, weights=np.isfinite(ranks), minlength=len(judged.sizes)).astype(np.int64)
    return Scores(metrics, intervals, values, relevant=judged.sizes, found=found, ks=ks, **known)


def _judgements(qrels: Mapping[Any, Mapping[Any, float]], query_ids: list[Any], corpus_ids: list[Any]) -> Judgements:
    row = {key: number for number, key in enumerate(corpus_ids)}
    offsets, documents, grades = [0], [], []
    for query in query_ids:
        for document, grade in qrels.get(query, {}).items():
            if grade > 0:
                documents.append(row.get(document, MISSING))
                grades.append(grade)
        offsets.append(len(documents))
    if not documents:
        raise MmclError(f"qrels name no relevant document for any of the queries: {_examples(qrels, query_ids)}")
    if max(documents) == MISSING:
        named = next(qrels[query] for query in query_ids if qrels.get(query))
        raise MmclError(f"none of the relevant documents is in the corpus: {_examples(named, corpus_ids)}")
    return Judgements(np.array(offsets), np.array(documents, dtype=np.int64), np.array(grades, dtype=np.float64))


def _examples(named: Mapping[Any, Any], ids: list[Any]) -> str:
    return f"qrels have ids such as {next(iter(named), None)!r}, the vectors such as {ids[0]!r}"


def _incidence(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> scipy.sparse.csr_array:
    """(height, width) sparse: 1 where some pair (row, column) is given, however often."""
    matrix = scipy.sparse.csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(height, width))
    matrix.data[:] = 1
    return matrix


def _expand(linked: scipy.sparse.csr_array, document_class: np.ndarray, query_class: np.ndarray) -> Judgements:
    """Judgements of rows from links between their classes: every document of a linked class is a right answer."""
    members = _incidence(document_class, np.arange(len(document_class)), linked.shape[1], len(document_class))
    answers = (linked @ members)[query_class]  # entries are 1: a document is in one class only
    return Judgements(answers.indptr.astype(np.int64), answers.indices.astype(np.int64), np.ones(answers.nnz))
