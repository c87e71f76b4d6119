"""A finished run judged for its report: intervals and chance, examples of searches, and the worst mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.data.rows import Rows
from mmcl.data.sources import open_described
from mmcl.data.sources.beir import is_beir, open_beir
from mmcl.encoding import Encoder
from mmcl.evaluation import Scores, StsScores, beir_retrieval, retrieval_of_texts, sts
from mmcl.evaluation.examples import examples, worst_answers
from mmcl.evaluation.tasks.retrieval_evaluator import RetrievalSourceConfig
from mmcl.evaluation.tasks.rows import PairVectors, embed_pairs, retrieval_of_vectors
from mmcl.evaluation.tasks.sts_evaluator import StsSourceConfig, open_pairs
from mmcl.reports.shown import Hit, Mistake, Search
from mmcl.training.run import Run

SEARCHES, HITS, MISTAKES = 4, 8, 12
ImageOf: TypeAlias = Callable[[str], bytes | Path | None]


@dataclass
class Judged:
    """What the model of a run does on the sources that its config judges by.

    Attributes:
        scores: {source: {direction: Scores}}, or {source: StsScores}; of evaluators of other packages
            {source: {metric: value}}.
        searches: captions drawn at random, and the images found for them.
        mistakes: images that are nearer to a wrong caption than to their own, the worst first.
    """

    scores: dict[str, Mapping[str, Scores] | Mapping[str, float] | StsScores] = field(default_factory=dict)
    searches: list[Search] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


def judge_run(run: Run) -> Judged:
    """Judge the model of a finished run on every source of ``evaluation.sources``, with 95% intervals.

    Searches and mistakes are of the first source of images and captions.

    Raises:
        MmclError: the model or a source cannot be read.
    """
    encoder, judged = run.model, Judged()
    for name, source in run.config.evaluation.sources.items():
        if isinstance(source, StsSourceConfig):
            pairs = open_pairs(source)
            prompts = run.config.data.prompts
            judged.scores[name] = sts(encoder, pairs, prompt=prompts.get("text", prompts.get("anchor")))
        elif not isinstance(source, RetrievalSourceConfig):  # of another package: what training measured
            measured = {key: value for key, value in run.metrics.items() if key.startswith(f"{name}/")}
            judged.scores[name] = {key.removeprefix(f"{name}/"): value for key, value in measured.items()}
        elif is_beir(source.source):
            judged.scores[name] = {"query_to_document": _search_beir(encoder, run, source)}
        elif "image" in encoder.modalities:
            rows = open_described(source, run.config.data.image)
            image, text = (_column(run, source, role) for role in ("image", "text"))
            vectors = embed_pairs(encoder, rows, image=image, text=text)
            judged.scores[name] = retrieval_of_vectors(vectors, run.config.evaluation.ks)
            if not judged.searches:
                image_of = images_of(rows, image)
                judged.searches, judged.mistakes = searches_of(vectors, image_of), mistakes_of(vectors, image_of)
        else:
            judged.scores[name] = _search_texts(encoder, run, source)
    return judged


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


def _column(run: Run, source: EvaluationSourceConfig, role: str) -> str:
    return source.columns.get(role, run.config.data.columns.get(role, role))


def _search_texts(encoder: Encoder, run: Run, source: EvaluationSourceConfig) -> dict[str, Scores]:
    names, prompts = ("anchor", "positive"), run.config.data.prompts
    return retrieval_of_texts(
        encoder,
        open_described(source, run.config.data.image),
        query=_column(run, source, names[0]),
        document=_column(run, source, names[1]),
        ks=run.config.evaluation.ks,
        names=names,
        query_prompt=prompts.get(names[0]),
        document_prompt=prompts.get(names[1]),
    )


def _search_beir(encoder: Encoder, run: Run, source: EvaluationSourceConfig) -> Scores:
    prompts = run.config.data.prompts
    return beir_retrieval(
        encoder,
        open_beir(source.source, source.split),
        run.config.evaluation.ks,
        query_prompt=prompts.get("anchor"),
        document_prompt=prompts.get("positive"),
    )
