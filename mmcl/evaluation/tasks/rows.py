"""From a model and a table of rows to scores: what the command line judges."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.rows import Rows
from mmcl.data.sources.tar.rows import ShardRows
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.inputs import cutoffs
from mmcl.evaluation.metrics.rank import lidar, rank_me
from mmcl.evaluation.tasks.augmented import augmented_vectors
from mmcl.evaluation.tasks.classification.classes import class_names, class_numbers
from mmcl.evaluation.tasks.classification.templates import resolve
from mmcl.evaluation.tasks.classification.zero_shot import ZeroShotScores, classifier, zero_shot
from mmcl.evaluation.tasks.diagnostics import Diagnostics, diagnose
from mmcl.evaluation.tasks.embed_rows import PairVectors, embed_pairs, fingerprint, image_vectors, report_left_out
from mmcl.evaluation.tasks.retrieval import Scores, retrieval_pairs
from mmcl.evaluation.texts import Encodes, text_identities
from mmcl.evaluation.trained_on import warn_of_training_rows
from mmcl.runtime.errors import MmclError

_BLOCK = 64
log = logging.getLogger("mmcl")


def retrieval_of_rows(
    encoder: Encodes,
    rows: Rows | ShardRows,
    *,
    image: str = "image",
    text: str = "text",
    ks: Iterable[int] = (1, 5, 10),
    bootstrap: int = 1000,
) -> dict[str, Scores]:
    """Retrieval both ways between the images of a column and the captions of another, one or a list a row.

    Captions that are the same to the model are right answers for each other's images, and equal images for each
    other's captions: an image that stands in five rows with a caption each is as right in any of them. Rows with an
    unreadable image or without a caption are left out, and their number is logged. Under ``clip_benchmark`` stand
    CLIP_benchmark's metrics, for which a caption is right for the image of its own row only.

    Returns:
        {"image_to_text": Scores, "text_to_image": Scores}; query ids are row ids, and "<row id>#<number>" of captions.

    Raises:
        MmclError: there is no such column, or no usable row.
    """
    pairs = embed_pairs(encoder, rows, image=image, text=text)
    warn_of_training_rows(encoder, rows, image=image)
    return retrieval_of_vectors(pairs, ks, bootstrap=bootstrap)


def retrieval_of_vectors(
    pairs: PairVectors, ks: Iterable[int] = (1, 5, 10), *, bootstrap: int = 1000
) -> dict[str, Scores]:
    """As :func:`retrieval_of_rows`, of what :func:`embed_pairs` made of the rows."""
    ks = cutoffs(ks)
    scores = retrieval_pairs(
        pairs.images,
        pairs.texts,
        pairs.owner,
        ks,
        ids=(pairs.hashes, pairs.same_captions),
        bootstrap=bootstrap,
    )
    repeated = len(set(pairs.same_captions)) < len(pairs.captions) or len(np.unique(pairs.hashes)) < len(pairs.hashes)
    own = retrieval_pairs(pairs.images, pairs.texts, pairs.owner, ks, bootstrap=0) if repeated else scores
    sides = {"image_to_text": ("text", pairs.row_ids), "text_to_image": ("image", pairs.caption_ids)}
    return {
        way: replace(
            scores[way],
            query_ids=ids,
            data=fingerprint(pairs.caption_ids, pairs.captions),
            clip_benchmark={f"{found}_retrieval_recall@{k}": own[way].metrics[f"hit@{k}"] for k in ks},
        )
        for way, (found, ids) in sides.items()
    }


def zero_shot_of_rows(
    encoder: Encodes,
    rows: Rows | ShardRows,
    *,
    label: str,
    image: str = "image",
    templates: str | Path | Sequence[str | Path] = ("{}",),
    classes: str | Path | Sequence[str] | None = None,
    ks: Iterable[int] = (1, 5),
    bootstrap: int = 1000,
) -> ZeroShotScores:
    """Zero-shot classification of the images of a column by the class names or numbers that stand in another.

    Args:
        encoder: embeds images and sentences.
        rows: the table.
        label, image: its columns.
        templates: what class names are put into, see ``mmcl.evaluation.tasks.classification.templates.resolve``.
        classes: the names of all classes, whose places are the class numbers: "imagenet", a file with a name a line, or
            a list; see ``mmcl.evaluation.tasks.classification.classes.class_names``. By default the distinct labels in
            alphabetical order.
        ks: cut-offs of top@k.
        bootstrap: resamples for the intervals.

    Raises:
        MmclError: there is no such column, no usable row, a label that is no class, or a template has no place for the
            name.
    """
    rows.require([image, label])
    sentences = resolve(templates)
    labels: list[str | None] = [
        value if isinstance(value, str) and value.strip() else None for value in rows.texts(label)
    ]
    if classes is None:
        names, place = _distinct_names(encoder, sorted({name for name in labels if name is not None}))
        if len(names) < 2:
            raise MmclError(f"{rows.name}: column '{label}' holds {len(names)} class names; at least two are needed")
        if len(place) > len(names):
            alike = next(name for name in place if name not in names)
            log.warning(
                "%s: %d class names in column '%s' read the same as another to the model and count as that one, such "
                "as %r as %r",
                *(rows.name, len(place) - len(names), label, alike, names[place[alike]]),
            )
        codes = [None if name is None else place[name] for name in labels]
    else:
        names = class_names(classes)
        codes = class_numbers(labels, names, where=f"{rows.name}: column '{label}'")
    warn_of_training_rows(encoder, rows, image=image)
    vectors, readable, _ = image_vectors(encoder, rows, image)
    kept = [position for position, row in enumerate(readable) if codes[row] is not None]
    report_left_out(rows, len(rows) - len(kept), "an unreadable image or no class name")
    own = np.array([codes[readable[position]] for position in kept], dtype=np.int64)
    scores = zero_shot(vectors[kept], own, classifier(encoder, names, sentences), ks, names=names, bootstrap=bootstrap)
    ids = rows.ids()
    query_ids = [ids[readable[position]] for position in kept]
    return replace(scores, query_ids=query_ids, data=fingerprint(query_ids, own.tolist(), names))


def _distinct_names(encoder: Encodes, labels: list[str]) -> tuple[list[str], dict[str, int]]:
    """The class names, each once of those that the model cannot tell apart, and the number of each label's."""
    first: dict[Hashable, int] = {}
    names: list[str] = []
    place: dict[str, int] = {}
    for label, same in zip(labels, text_identities(encoder, labels), strict=True):
        if same not in first:
            first[same] = len(names)
            names.append(label)
        place[label] = first[same]
    return names, place


def scores_of_rows(
    encoder: Encodes,
    rows: Rows | ShardRows,
    *,
    image: str = "image",
    text: str | None = None,
    label: str | None = None,
    ks: Iterable[int] = (1, 5, 10),
    templates: str | Path | Sequence[str | Path] = ("{}",),
    classes: str | Path | Sequence[str] | None = None,
) -> dict[str, Scores | ZeroShotScores]:
    """Retrieval if a column of captions is named, zero-shot classification if one of labels is; without intervals.

    Returns:
        {"image_to_text": Scores, "text_to_image": Scores, "zero_shot": ZeroShotScores}, or part of it; what
        ``mmcl.evaluation.compare`` takes.
    """
    scores: dict[str, Scores | ZeroShotScores] = {}
    if text is not None:
        scores.update(retrieval_of_rows(encoder, rows, image=image, text=text, ks=ks, bootstrap=0))
    if label is not None:
        scores["zero_shot"] = zero_shot_of_rows(
            encoder, rows, label=label, image=image, templates=templates, classes=classes, ks=ks, bootstrap=0
        )
    return scores


def diagnostics_of_rows(
    encoder: Encodes,
    rows: Rows | ShardRows,
    *,
    image: str | None = "image",
    text: str | None = "text",
    views: int = 0,
) -> Diagnostics:
    """The geometry of the embeddings of a column of images, of a column of texts, or of both and how they lie.

    Args:
        encoder: embeds them.
        rows: the table.
        image, text: its columns.
        views: random changes of each of 1,000 images, of which LiDAR is taken; from 2 up, or 0 for none.

    Raises:
        MmclError: neither is named, there is no such column, or no usable row; views of what is not images alone.
    """
    if views and (views < 2 or image is None or text is not None or not isinstance(encoder, Encoder)):
        raise MmclError(
            "diagnostics: LiDAR is of images alone, with at least two views of each; name a column of images and none "
            "of texts, and --views from 2 up"
        )
    if image is not None and text is not None:
        pairs = embed_pairs(encoder, rows, image=image, text=text)
        return diagnose(pairs.images, pairs.texts, pairs.owner)
    if image is not None:
        rows.require([image])
        options = {"normalize": False} if isinstance(encoder, Encoder) else {}
        vectors, readable, _ = image_vectors(encoder, rows, image, **options)
        report_left_out(rows, len(rows) - len(readable), "an unreadable image")
        found = replace(diagnose(vectors), rank_me=rank_me(vectors))
        if views and isinstance(encoder, Encoder):
            found = replace(found, lidar=lidar(augmented_vectors(encoder, rows, image, views)))
        return found
    if text is None:
        raise MmclError("diagnostics: name a column of images, a column of texts, or both")
    rows.require([text])
    texts = [caption for value in rows.texts(text) for caption in texts_of(value)]
    if not texts:
        raise MmclError(f"{rows.name}: column '{text}' holds no text")
    return diagnose(np.asarray(encoder.encode(texts), dtype=np.float32), names=("text", "text"))
