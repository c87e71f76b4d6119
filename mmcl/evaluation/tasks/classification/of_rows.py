"""From a model and two tables of images with labels to scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from mmcl.data.rows import ColumnError, Rows, label_of
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.evaluation.tasks.classification.few_shot import FRACTIONS, SEEDS, FewShotScores, check_draws, few_shot
from mmcl.evaluation.tasks.classification.knn import KnnScores, check_votes, knn_table
from mmcl.evaluation.tasks.classification.linear_probe import LinearProbeScores, check_penalty, linear_probe
from mmcl.evaluation.tasks.classification.scores import ClassificationScores
from mmcl.evaluation.tasks.embed_rows import fingerprint, image_vectors, report_left_out
from mmcl.evaluation.texts import Encodes
from mmcl.evaluation.trained_on import warn_of_training_rows

log = logging.getLogger("mmcl")
S = TypeVar("S", bound=ClassificationScores)


@dataclass(frozen=True)
class LabelledVectors:
    """The images of N rows as vectors, with their labels."""

    vectors: np.ndarray  # (N, D) float32
    labels: list[str]
    ids: list[str]
    hashes: np.ndarray  # (N,) equal for equal images
    rows: np.ndarray  # (N,) their numbers in the table

    def name(self, scores: S) -> S:
        """The scores of these rows, with their ids."""
        return replace(scores, query_ids=self.ids, data=fingerprint(self.ids, self.labels))


class Both(NamedTuple):
    """Rows to learn from and rows to judge on."""

    learned: LabelledVectors
    judged: LabelledVectors

    @property
    def arrays(self) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
        """Vectors and labels to learn from, and those to judge on."""
        return self.learned.vectors, self.learned.labels, self.judged.vectors, self.judged.labels


def embed_labelled(
    encoder: Encodes, rows: Rows | ShardRows, *, image: str = "image", label: str = "label", **options: Any
) -> LabelledVectors:
    """Embed the images of a column, with the labels of another.

    Rows with an unreadable image or without a label are left out, and their number is logged.

    Args:
        encoder: embeds images.
        rows: the table.
        image, label: its columns.
        options: other arguments of ``encode``, such as ``normalize``.

    Raises:
        MmclError: there is no such column, or no usable row.
    """
    rows.require([image, label])
    labels = _labels(rows, label)
    vectors, readable, hashes = image_vectors(encoder, rows, image, **options)
    kept = [place for place, row in enumerate(readable) if labels[row] is not None]
    report_left_out(rows, len(rows) - len(kept), "an unreadable image or no label")
    ids = rows.ids()
    return LabelledVectors(
        vectors[kept],
        [str(labels[readable[place]]) for place in kept],
        [ids[readable[place]] for place in kept],
        hashes[kept],
        np.array([readable[place] for place in kept]),
    )


def embed_both(
    encoder: Encodes,
    train: Rows | ShardRows,
    test: Rows | ShardRows,
    *,
    image: str = "image",
    label: str = "label",
    **options: Any,
) -> Both:
    """Embed the rows to learn from and those to judge on, as :func:`embed_labelled`. Test rows that the model was
    trained on, and those whose image is among ``train``, are warned of."""
    for rows in (train, test):
        rows.require([image, label])
    warn_of_training_rows(encoder, test, image=image)
    learned, judged = (embed_labelled(encoder, rows, image=image, label=label, **options) for rows in (train, test))
    if shared := int(np.isin(judged.hashes, learned.hashes).sum()):
        log.warning(
            "%s: the images of %d of %d rows stand in %s, too: the numbers are better than on new images",
            *(test.name, shared, len(judged.ids), train.name),
        )
    return Both(learned, judged)


def knn_of_rows(
    encoder: Encodes,
    train: Rows | ShardRows,
    test: Rows | ShardRows,
    *,
    image: str = "image",
    label: str = "label",
    ks: Sequence[int] = (200,),
    temperatures: Sequence[float] = (0.1,),
    bootstrap: int = 1000,
) -> list[KnnScores]:
    """Classify the images of ``test`` by the votes of those of ``train``, see :func:`~mmcl.evaluation.knn`.

    Returns:
        The scores of every k with every temperature.

    Raises:
        MmclError: there is no such column, or no usable row; and as ``knn``.
    """
    check_votes(ks, temperatures)  # before hours of embedding
    both = embed_both(encoder, train, test, image=image, label=label)
    found = knn_table(*both.arrays, ks, temperatures, bootstrap=bootstrap, device=_device(encoder))
    return [both.judged.name(scores) for scores in found]


def linear_probe_of_rows(
    encoder: Encodes,
    train: Rows | ShardRows,
    test: Rows | ShardRows,
    *,
    image: str = "image",
    label: str = "label",
    l2: float | None = None,
    bootstrap: int = 1000,
) -> LinearProbeScores:
    """Classify the images of ``test`` by a linear probe that those of ``train`` fitted, on features that are not
    normalised to unit length; see :func:`~mmcl.evaluation.linear_probe`.

    Raises:
        MmclError: there is no such column, or no usable row; and as ``linear_probe``.
    """
    check_penalty(l2)
    both = embed_both(encoder, train, test, image=image, label=label, normalize=False)
    return both.judged.name(linear_probe(*both.arrays, l2, bootstrap=bootstrap, device=_device(encoder)))


def few_shot_of_rows(
    encoder: Encodes,
    train: Rows | ShardRows,
    test: Rows | ShardRows,
    *,
    image: str = "image",
    label: str = "label",
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = SEEDS,
    bootstrap: int = 1000,
) -> list[FewShotScores]:
    """Classify the images of ``test`` by a share of the labels of ``train``; see :func:`~mmcl.evaluation.few_shot`.

    Raises:
        MmclError: there is no such column, or no usable row; and as ``few_shot``.
    """
    check_draws(fractions, seeds)
    both = embed_both(encoder, train, test, image=image, label=label, normalize=False)
    return few_shot(*both.arrays, fractions, seeds, bootstrap=bootstrap, device=_device(encoder))


def _device(encoder: Encodes) -> torch.device | None:
    return getattr(encoder, "device", None)


def _labels(rows: Rows | ShardRows, column: str) -> list[str | None]:
    if isinstance(rows, Rows):
        return rows.labels(column)
    try:
        return [label_of(value) for value in rows.texts(column)]
    except ValueError as error:
        raise ColumnError(f"{rows.name}: column '{column}' holds {error}", column) from None
