"""Retrieval on a source, whatever its layout: images and texts, two columns of text, a folder in BEIR's; by models, and
where there are judgements by runs of whatever system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mmcl.data.rows import Rows
from mmcl.data.sources.beir import Beir, is_beir, open_beir
from mmcl.data.sources.tar.rows import ShardRows, open_rows
from mmcl.data.sources.trec import Run, is_run, read_qrels, read_run
from mmcl.encoding.prompts import for_documents, for_queries
from mmcl.evaluation.compare import read_per_query
from mmcl.evaluation.left_out import SelfMatches, check_self_matches
from mmcl.evaluation.metrics.tie_order import Ties, check_ties
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.evaluation.tasks.rows import retrieval_of_rows
from mmcl.evaluation.tasks.runs import beir_run, retrieval_run
from mmcl.evaluation.tasks.text_retrieval import beir_retrieval, retrieval_of_texts
from mmcl.runtime.errors import MmclError

_DEPTHS = (1, 10, 100)  # of graded judgements
_CLOSE = (1, 5, 10)  # of pairs


class Retrieval(Protocol):
    """A task, for any number of models and runs."""

    def __call__(self, judged: Any, resamples: int, run: Path | None = None) -> dict[str, Scores]:
        """The scores of each direction.

        Args:
            judged: a model, or where there are judgements a :class:`mmcl.data.sources.trec.Run`.
            resamples: for the intervals.
            run: a file to write what the model finds to, where there are judgements.
        """


@dataclass(frozen=True)
class Searched:
    """What is searched with what.

    Attributes:
        image, text: columns of images and of their texts, of a model of both.
        query, document: columns of text to search with and to search in; both or neither.
        query_prompt, document_prompt: names of the model's prompts; its own choice where None.
        self_matches: what becomes of queries that stand in the corpus themselves, of texts; the layout's rule where
            None.
        ks: cut-offs; 1, 5, 10, or of BEIR 1, 10, 100, where None.
        tower, document_tower: which embed queries, or captions, and documents, of a model with several towers of a
            kind.
        ties: which of equal documents ranks first; ``strict`` of models and ``trec_eval`` of runs, where None.
        complete: whether judged queries that a run lacks score 0.
    """

    image: str = "image"
    text: str = "text"
    query: str | None = None
    document: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    self_matches: SelfMatches | None = None
    ks: Sequence[int] | None = None
    tower: str | None = None
    document_tower: str | None = None
    ties: Ties | None = None
    complete: bool = False

    def by(self, encoder: Any) -> tuple[Any, Any]:
        """What embeds queries, and what embeds documents.

        Raises:
            MmclError: of a model with several towers of texts, one is named for queries alone.
        """
        if self.tower is None and self.document_tower is None:
            return for_queries(encoder), for_documents(encoder)
        queries = by_tower(encoder, self.tower)
        if self.document_tower is None and queries is not encoder:
            names = " or ".join(encoder.towers.of_modality("text"))
            raise MmclError(
                f"model '{encoder.name}' has several text towers; name that of documents: --document-tower {names}"
            )
        return queries, by_tower(encoder, self.document_tower)


def by_tower(encoder: Any, tower: str | None) -> Any:
    """The encoder by a tower, unless it has one of each kind: what the model is compared with may have no choice."""
    if tower is None or len(encoder.towers.names) == len(encoder.modalities):
        return encoder
    return encoder.only(tower)


def open_retrieval(
    source: str,
    searched: Searched,
    *,
    of: Sequence[str] = (),
    split: str | None = None,
    separator: str | None = None,
    root: Path | None = None,
) -> Retrieval:
    """The retrieval task that a source makes.

    Args:
        source: rows, or a folder in BEIR's layout.
        searched: its columns and options.
        of: names of what is to be judged, where there may be runs among them (:func:`open_judged`). With a run, ties
            are ordered as in trec_eval, unless ``searched`` says otherwise; several are judged on all queries, of which
            those that a run lacks score 0; and of runs alone, a file holds judgements, not rows.
        split, separator, root: see :func:`mmcl.data.sources.open_source`.

    Raises:
        MmclError: the source cannot be read, or does not fit the options. The returned function raises where the model
            does not fit the source.
    """
    runs = [is_run(name) for name in of]
    if any(runs):
        complete = searched.complete or len(runs) > 1
        searched = replace(searched, ties=searched.ties or "trec_eval", complete=complete)
    query, document = searched.query, searched.document
    texts: dict[str, Any] = {"query_prompt": searched.query_prompt, "document_prompt": searched.document_prompt}
    if searched.ties is not None:
        check_ties(searched.ties)
    if searched.self_matches is not None:
        check_self_matches(searched.self_matches)
        texts["self_matches"] = searched.self_matches
    if (query is None) != (document is None):
        raise MmclError("--query and --document go together: the column to search with, and the one to search in")
    if query is None and is_beir(source):
        return _of_beir(open_beir(source, split), searched, texts)
    if runs and all(runs):
        return _of_judgements(source, searched)
    if any(runs):
        name = of[runs.index(True)]
        raise MmclError(f"{name} is a run, which judgements judge: a folder in BEIR's layout, or alone a file of qrels")
    if searched.ties is not None:
        raise MmclError(f"{source}: --ties is of searches with judgements, in BEIR's layout or of runs; leave it out")
    rows = open_rows(source, split=split, separator=separator, root=root)
    if query is not None:
        return _of_texts(rows, searched, texts)
    for option, given in (("--self-matches", searched.self_matches), ("--document-tower", searched.document_tower)):
        if given is not None:
            raise MmclError(
                f"{source}: {option} is of searches for texts by texts, a folder in BEIR's layout or --query and "
                "--document; leave it out"
            )
    return _of_images(rows, searched)


def open_judged(name: str, load: Callable[[str], Any], towers: Iterable[str | None] = ()) -> Any:
    """The run in a file of this name, if that holds one; else the model, which must have the towers that are named.

    Raises:
        MmclError: the run cannot be read, there is no such model, or it has no such tower.
    """
    if is_run(name):
        return read_run(name)
    model = load(name)
    for tower in filter(None, towers):
        model.towers.resolve(tower)  # a name that the model has not is a mistake; that it has no choice is none
    return model


def judge_each(
    names: Sequence[str], load: Callable[[str], Any], source: str | None, searched: Searched, **table: Any
) -> list[Mapping[str, Any]]:
    """What each of several systems scores on the same queries, as :func:`mmcl.evaluation.compare` takes it.

    Args:
        names: of models, of run files, and of JSON files with the values of every query.
        load: from the name of a model to the model.
        source, searched, table: as of :func:`open_retrieval`; of JSON files alone the source may be None.

    Raises:
        MmclError: as :func:`open_retrieval`, or there is no source to judge models or runs on.
    """
    judged = [name for name in names if not name.endswith(".json")]
    if judged and source is None:
        raise MmclError(f"compare {' '.join(names)}: name a source to judge both models on, or give two .json files")
    searched = replace(searched, complete=True)
    judge = open_retrieval(str(source), searched, of=judged, **table) if judged else None
    return [
        read_per_query(name) if judge is None or name not in judged else judge(open_judged(name, load), 0)
        for name in names
    ]


def _of_texts(rows: Rows | ShardRows, searched: Searched, options: Mapping[str, Any]) -> Retrieval:
    columns = {"query": searched.query, "document": searched.document}
    ks = searched.ks or _CLOSE

    def judge(judged: Any, resamples: int, run: Path | None = None) -> dict[str, Scores]:
        _check_not_written(rows.name, run)
        given: dict[str, Any] = columns | dict(options)
        return retrieval_of_texts(searched.by(judged), rows, ks=ks, bootstrap=resamples, **given)

    return judge


def _of_images(rows: Rows | ShardRows, searched: Searched) -> Retrieval:
    def judge(judged: Any, resamples: int, run: Path | None = None) -> dict[str, Scores]:
        _check_not_written(rows.name, run)
        if "image" not in judged.modalities:
            raise MmclError(
                f"{rows.name}: the model embeds texts only; name the column to search with and the one to search in by "
                f"--query and --document: it has {', '.join(rows.column_names)}"
            )
        encoder, ks = by_tower(judged, searched.tower), searched.ks or _CLOSE
        return retrieval_of_rows(encoder, rows, image=searched.image, text=searched.text, ks=ks, bootstrap=resamples)

    return judge


def _of_beir(beir: Beir, searched: Searched, options: Mapping[str, Any]) -> Retrieval:
    ks = searched.ks or _DEPTHS

    def judge(judged: Any, resamples: int, run: Path | None = None) -> dict[str, Scores]:
        if isinstance(judged, Run):
            _check_written(run)
            scores = beir_run(judged, beir, ks, bootstrap=resamples, **_of_runs(searched, "drop"))
        else:
            ties = searched.ties or "strict"
            sides = searched.by(judged)
            scores = beir_retrieval(sides, beir, ks, ties=ties, bootstrap=resamples, run=run, **options)
        return {"query_to_document": scores}

    return judge


def _of_judgements(source: str, searched: Searched) -> Retrieval:
    qrels = read_qrels(source)

    def judge(judged: Any, resamples: int, run: Path | None = None) -> dict[str, Scores]:
        _check_written(run)
        ks = searched.ks or _DEPTHS
        scores = retrieval_run(judged, qrels, ks, bootstrap=resamples, **_of_runs(searched, "keep"))
        return {"query_to_document": scores}

    return judge


def _of_runs(searched: Searched, self_matches: SelfMatches) -> dict[str, Any]:
    return {
        "ties": searched.ties or "trec_eval",
        "self_matches": searched.self_matches or self_matches,
        "complete": searched.complete,
    }


def _check_not_written(source: str, run: Path | None) -> None:
    if run is not None:
        raise MmclError(f"{source}: --run is of searches with judgements, a folder in BEIR's layout; leave it out")


def _check_written(run: Path | None) -> None:
    if run is not None:
        raise MmclError("--run writes what a model finds; a run is judged here, so leave it out")
