"""The threshold of a model by labelled pairs: of sentences, of images, or of an image and a text each."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmcl.data.rows import Rows
from mmcl.evaluation.tasks.embed_rows import image_vectors, report_left_out
from mmcl.evaluation.tasks.sentence_pairs import SentencePairs, Table, open_sts
from mmcl.evaluation.tasks.sts import pair_similarities
from mmcl.evaluation.tasks.threshold.threshold import Thresholds, threshold
from mmcl.evaluation.texts import Encodes, embed_texts
from mmcl.evaluation.trained_on import warn_of_training_pairs
from mmcl.runtime.errors import MmclError


def threshold_of_pairs(
    encoder: Encodes,
    table: Table | SentencePairs,
    *,
    same_from: float | None = None,
    split: str | None = None,
    prompt: str | None = None,
    **options: Any,
) -> Thresholds:
    """The cosine from which two sentences mean the same, by pairs with people's scores.

    Args:
        encoder: anything with ``encode(texts) -> (N, D)``; it gets every distinct sentence once.
        table, split: see :func:`mmcl.evaluation.open_sts`, whose result may stand here too; all rows by default.
        same_from: the score from which a pair is the same; may be absent where the scores are 0 and 1.
        prompt: the name of a prompt, handed to ``encode`` if it is given.
        options: other arguments of :func:`mmcl.evaluation.threshold`.

    Raises:
        MmclError: as ``open_sts`` and ``threshold``; scores from which it does not follow what is the same.
    """
    pairs = table if isinstance(table, SentencePairs) else open_sts(table, split=split)
    same = is_same(pairs.score, same_from, pairs.name)
    warn_of_training_pairs(encoder, pairs.name, list(zip(pairs.first, pairs.second, strict=True)), "pairs")
    return threshold(pair_similarities(encoder, pairs, prompt=prompt), same, **options)


def threshold_of_columns(
    encoder: Encodes,
    rows: Rows,
    columns: tuple[str, str],
    modalities: tuple[str, str],
    *,
    score: str,
    same_from: float | None = None,
    prompt: str | None = None,
    **options: Any,
) -> Thresholds:
    """As :func:`threshold_of_pairs`, of two columns of images, or of images and texts.

    Rows without both or without a score are left out, and their number is logged.

    Args:
        encoder: anything with ``encode(texts or images) -> (N, D)``.
        rows: the table.
        columns: of the two sides.
        modalities: ``image`` or ``text`` of each.
        score: the column of scores.
        same_from: see there.
        prompt: of texts.
        options: other arguments of :func:`mmcl.evaluation.threshold`.

    Raises:
        MmclError: as there.
    """
    rows.require([*columns, score])
    scores = rows.numbers(score)
    sides = [column_vectors(encoder, rows, *side, prompt=prompt) for side in zip(columns, modalities, strict=True)]
    usable = [row for row in np.flatnonzero(np.isfinite(scores)).tolist() if all(row in places for _, places in sides)]
    report_left_out(rows, len(rows) - len(usable), "no score, or nothing that can be read on one side")
    first, second = (vectors[[places[row] for row in usable]] for vectors, places in sides)
    same = is_same(scores[usable], same_from, rows.name)
    return threshold(cosines(first, second), same, **options)


def is_same(scores: np.ndarray, same_from: float | None, name: str) -> np.ndarray:
    """(N,) bool: which pairs are the same by their scores.

    Raises:
        MmclError: the scores are not 0 and 1 alone, and it is not said from which on they are.
    """
    if same_from is None:
        if not np.isin(scores, (0, 1)).all():
            raise MmclError(
                f"{name}: its scores go from {np.nanmin(scores):g} to {np.nanmax(scores):g}; say from which on a pair "
                "is the same: --same-from 4, same_from=4"
            )
        same_from = 1
    return np.asarray(scores >= same_from)


def column_vectors(
    encoder: Encodes, rows: Rows, column: str, modality: str, *, prompt: str | None = None
) -> tuple[np.ndarray, dict[int, int]]:
    """(n, D) vectors of the cells that can be read, and where each row's is."""
    if modality == "image":
        vectors, readable, _ = image_vectors(encoder, rows, column)
        return vectors, {row: place for place, row in enumerate(readable)}
    if modality != "text":
        raise MmclError(f"{rows.name}: column '{column}' of modality '{modality}'; pairs are of image and text")
    texts = {row: text for row, text in enumerate(rows.texts(column)) if isinstance(text, str) and text.strip()}
    vectors = embed_texts(encoder, list(texts.values()), prompt=prompt)
    return vectors, {row: place for place, row in enumerate(texts)}


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) float64 of the rows of two (N, D) arrays."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("nd,nd->n", first, second) / np.maximum(length, np.finfo(np.float64).tiny)
