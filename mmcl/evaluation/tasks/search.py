"""Retrieval on a source of rows, whatever its layout: images and texts, two columns of text, a folder in BEIR's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mmcl.data.sources.beir import is_beir, open_beir
from mmcl.data.sources.tar.rows import open_rows
from mmcl.evaluation.left_out import SelfMatches, check_self_matches
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.evaluation.tasks.rows import retrieval_of_rows
from mmcl.evaluation.tasks.text_retrieval import beir_retrieval, retrieval_of_texts
from mmcl.runtime.errors import MmclError

Retrieval: TypeAlias = Callable[[Any, int], dict[str, Scores]]
"""From a model and a number of resamples to the scores of each direction."""


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

    def by(self, encoder: Any) -> tuple[Any, Any]:
        """What embeds queries, and what embeds documents.

        Raises:
            MmclError: of a model with several towers of texts, one is named for queries alone.
        """
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
    source: str, searched: Searched, *, split: str | None = None, separator: str | None = None, root: Path | None = None
) -> Retrieval:
    """The retrieval task that a source makes, for any number of models.

    Args:
        source: rows, or a folder in BEIR's layout.
        searched: its columns and options.
        split, separator, root: see :func:`mmcl.data.sources.open_source`.

    Raises:
        MmclError: the source cannot be read, or does not fit the options. The returned function raises where the model
            does not fit the source.
    """
    query, document = searched.query, searched.document
    prompts = {"query_prompt": searched.query_prompt, "document_prompt": searched.document_prompt}
    texts: dict[str, Any] = dict(prompts)
    if searched.self_matches is not None:
        check_self_matches(searched.self_matches)
        texts["self_matches"] = searched.self_matches
    if (query is None) != (document is None):
        raise MmclError("--query and --document go together: the column to search with, and the one to search in")
    if query is None and is_beir(source):
        beir, depths = open_beir(source, split), searched.ks or (1, 10, 100)
        return lambda encoder, resamples: {
            "query_to_document": beir_retrieval(searched.by(encoder), beir, depths, bootstrap=resamples, **texts)
        }
    rows, ks = open_rows(source, split=split, separator=separator, root=root), searched.ks or (1, 5, 10)
    if query is not None and document is not None:
        return lambda encoder, resamples: retrieval_of_texts(
            searched.by(encoder), rows, query=query, document=document, ks=ks, bootstrap=resamples, **texts
        )
    if searched.self_matches is not None:
        raise MmclError(
            f"{source}: --self-matches is of searches for texts by texts, a folder in BEIR's layout or --query and "
            "--document; leave it out"
        )

    if searched.document_tower is not None:
        raise MmclError(
            f"{source}: --document-tower is of searches for texts by texts, a folder in BEIR's layout or --query and "
            "--document; leave it out"
        )

    def images_and_texts(encoder: Any, resamples: int) -> dict[str, Scores]:
        if "image" not in encoder.modalities:
            raise MmclError(
                f"{rows.name}: the model embeds texts only; name the column to search with and the one to search in by "
                f"--query and --document: it has {', '.join(rows.column_names)}"
            )
        image, text = searched.image, searched.text
        encoder = by_tower(encoder, searched.tower)
        return retrieval_of_rows(encoder, rows, image=image, text=text, ks=ks, bootstrap=resamples)

    return images_and_texts
