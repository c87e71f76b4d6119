"""A finished model judged by retrieval for its report: intervals and chance, searches, and the worst mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.config.schema import Config
from mmcl.data.rows import Rows
from mmcl.data.sources import open_described
from mmcl.data.sources.beir import is_beir, open_beir
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.examples import examples, worst_answers
from mmcl.evaluation.left_out import SelfMatches
from mmcl.evaluation.measured import SourceResults
from mmcl.evaluation.shown import Hit, Mistake, Search
from mmcl.evaluation.tasks.embed_rows import PairVectors, embed_pairs
from mmcl.evaluation.tasks.retrieval import Scores
from mmcl.evaluation.tasks.rows import retrieval_of_vectors
from mmcl.evaluation.tasks.text_retrieval import beir_retrieval, retrieval_of_texts

SEARCHES, HITS, MISTAKES = 4, 8, 12
ImageOf: TypeAlias = Callable[[str], bytes | Path | None]


def judge_retrieval(
    source: EvaluationSourceConfig, encoder: Encoder, config: Config, self_matches: SelfMatches | None = None
) -> SourceResults:
    """Retrieval on a source, with 95% intervals; of images and captions with searches and mistakes as well.

    Args:
        source: its settings.
        encoder: the model.
        config: of its run.
        self_matches: of texts by texts, what becomes of a document that is the query itself; if absent ``drop`` for a
            folder in BEIR's layout, else ``keep``.

    Raises:
        MmclError: the source cannot be read, or has no usable row.
    """
    if is_beir(source.source):
        return SourceResults({"query_to_document": _search_beir(encoder, config, source, self_matches or "drop")})
    if "image" not in encoder.modalities:
        return SourceResults(_search_texts(encoder, config, source, self_matches or "keep"))
    rows = open_described(source, config.data.image)
    image, text = (_column(config, source, role) for role in ("image", "text"))
    vectors, image_of = embed_pairs(encoder, rows, image=image, text=text), images_of(rows, image)
    scores = retrieval_of_vectors(vectors, config.evaluation.ks)
    return SourceResults(scores, searches_of(vectors, image_of), mistakes_of(vectors, image_of))


def searches_of(pairs: PairVectors, image_of: ImageOf, *, count: int = SEARCHES) -> list[Search]:
    """Captions drawn at random, and the images found for each; images with an equal caption are right.

    Args:
        pairs: images and captions as vectors.
        image_of: the encoded image, or its file, of a row id.
        count: how many.
    """
    named = _places(pairs.captions)
    images_of = [pairs.owner[named[caption]] for caption in pairs.captions]
    first_caption = np.searchsorted(pairs.owner, np.arange(len(pairs.images)))
    return [
        Search(
            pairs.captions[found.query],
            [
                Hit(pairs.captions[first_caption[row]], float(score), image_of(pairs.row_ids[row]), bool(right))
                for row, score, right in zip(found.documents.tolist(), found.scores, found.right, strict=True)
            ],
        )
        for found in examples(pairs.texts, pairs.images, images_of, count=count, k=HITS)
    ]


def mistakes_of(pairs: PairVectors, image_of: ImageOf, *, count: int = MISTAKES) -> list[Mistake]:
    """The images that prefer a wrong caption by most; a caption that equals one of an image's own is right.

    Args:
        pairs: images and captions as vectors.
        image_of: the encoded image, or its file, of a row id.
        count: how many at most.
    """
    named = _places(pairs.captions)
    ends = np.searchsorted(pairs.owner, np.arange(len(pairs.images) + 1)).tolist()
    captions_of = [
        np.unique(np.concatenate([named[caption] for caption in pairs.captions[start:stop]]))
        for start, stop in itertools.pairwise(ends)
    ]
    return [
        Mistake(
            image=image_of(pairs.row_ids[answer.query]),
            name=pairs.captions[answer.right],
            taken_for=pairs.captions[answer.nearest],
            taken_for_image=image_of(pairs.row_ids[int(pairs.owner[answer.nearest])]),
            score=answer.score,
            score_of_right=answer.score_of_right,
            rank_of_right=answer.rank_of_right,
        )
        for answer in worst_answers(pairs.images, pairs.texts, captions_of, count=count)
    ]


def images_of(rows: Rows, column: str) -> ImageOf:
    """A function from a row's id to its image, which is read when it is asked for."""
    place = {name: row for row, name in enumerate(rows.ids())}
    return lambda name: rows.images(column, [place[name]])[0]


def _places(captions: Sequence[str]) -> dict[str, list[int]]:
    """Where each distinct caption stands."""
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        places.setdefault(caption, []).append(place)
    return places


def _column(config: Config, source: EvaluationSourceConfig, role: str) -> str:
    return source.columns.get(role, config.data.columns.get(role, role))


def _search_texts(
    encoder: Encoder, config: Config, source: EvaluationSourceConfig, self_matches: SelfMatches
) -> dict[str, Scores]:
    names, prompts = ("anchor", "positive"), config.data.prompts
    return retrieval_of_texts(
        encoder,
        open_described(source, config.data.image),
        query=_column(config, source, names[0]),
        document=_column(config, source, names[1]),
        ks=config.evaluation.ks,
        names=names,
        query_prompt=prompts.get(names[0]),
        document_prompt=prompts.get(names[1]),
        self_matches=self_matches,
    )


def _search_beir(encoder: Encoder, config: Config, source: EvaluationSourceConfig, self_matches: SelfMatches) -> Scores:
    prompts = config.data.prompts
    return beir_retrieval(
        encoder,
        open_beir(source.source, source.split),
        config.evaluation.ks,
        query_prompt=prompts.get("anchor"),
        document_prompt=prompts.get("positive"),
        self_matches=self_matches,
    )
