"""Classification by class names alone: the class whose sentence is nearest to the image (CLIP, Radford et al. 2021)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcl.evaluation.inputs import cutoffs, matrix, same_width
from mmcl.evaluation.metrics import bootstrap as bootstrapping
from mmcl.evaluation.metrics.ranking import Judgements, Vectors, relevant_ranks
from mmcl.evaluation.tasks.classification.scores import ClassificationScores
from mmcl.evaluation.tasks.classification.templates import fill, resolve
from mmcl.evaluation.texts import Encodes
from mmcl.losses.logits.similarity import unit_rows
from mmcl.runtime.errors import MmclError

_SENTENCES = 8192  # embedded at once


@dataclass(frozen=True, kw_only=True)
class ZeroShotScores(ClassificationScores):
    """What ``zero_shot`` measured."""

    clip_benchmark: dict[str, float]
    """acc1, acc5 (of 5 classes and more) and mean_per_class_recall, as clip_benchmark and open_clip count them: of
    classes with the same vector, because they have the same name, the first is the model's answer."""

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "clip_benchmark": dict(self.clip_benchmark)}


def classifier(
    encoder: Encodes, names: Sequence[str], templates: str | Path | Sequence[str | Path] = ("{}",)
) -> np.ndarray:
    """One unit vector a class: the mean over the templates of the normalised embedding of its name in each.

    Args:
        encoder: anything with ``encode(texts) -> (N, D)``.
        names: C class names.
        templates: sentences with ``{}`` or ``{name}`` where the name goes, names of sets of them such as ``openai``,
            or files; see ``mmcl.evaluation.tasks.classification.templates.resolve``.

    Returns:
        (C, D) float32.

    Raises:
        MmclError: no names, or a template without a place for the name.
    """
    sentences = resolve(templates)
    if isinstance(names, str) or not names:
        raise MmclError("names: give a list of class names, such as ['cat', 'dog']")
    distinct = list(dict.fromkeys(names))  # embedded once, so that classes of one name have exactly the same vector
    step = max(1, _SENTENCES // len(sentences))
    parts = []
    for start in range(0, len(distinct), step):
        some = distinct[start : start + step]
        vectors = encoder.encode([fill(template, name) for name in some for template in sentences])
        ensemble = unit_rows(_array("class names", vectors)).reshape(len(some), len(sentences), -1)
        parts.append(unit_rows(ensemble.mean(1)))
    place = {name: number for number, name in enumerate(distinct)}
    return np.concatenate(parts)[[place[name] for name in names]]


def zero_shot(
    images: Vectors | list[Any],
    labels: Sequence[int] | np.ndarray,
    class_vectors: Vectors,
    ks: Iterable[int] = (1, 5),
    *,
    encoder: Encodes | None = None,
    names: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> ZeroShotScores:
    """Accuracy of choosing the class whose vector is nearest, by cosine, to the image's.

    A tie never helps: an image that lies as near to another class as to its own counts as the other's. ImageNet's
    list has "missile" and "sunglasses" twice, and the images of those four classes can therefore not be right;
    ``clip_benchmark`` holds the numbers in which the first of such classes is taken.

    Args:
        images: (N, D) vectors; or, with ``encoder``, a list of N images.
        labels: (N,) class numbers.
        class_vectors: (C, D), see ``classifier``.
        ks: cut-offs of top@k. Those of C and above are left out: whatever the model, they would be 1.
        encoder: embeds ``images`` if it is given.
        names: C names for ``per_class``; by default the class numbers.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resamples.
        device: where to rank; by default where ``images`` lie if they are a tensor, else the CPU.

    Raises:
        MmclError: vectors that are empty, not finite or of different widths; labels that are not class numbers.
    """
    ks = cutoffs(ks)
    vectors = matrix("images", images if encoder is None else _array("images", encoder.encode(list(images))))
    class_vectors = matrix("class vectors", class_vectors)
    same_width(("images", vectors), ("class vectors", class_vectors))
    count = len(class_vectors)
    label = _labels(labels, len(vectors), count)
    if names is not None and len(names) != count:
        raise MmclError(f"names: {len(names)} names for {count} class vectors; each class needs one")

    own = Judgements(np.arange(len(label) + 1), label, np.ones(len(label)))
    ranks = relevant_ranks(vectors, class_vectors, own, device=device).astype(np.int64)
    return ZeroShotScores.of_ranks(
        ranks,
        label,
        count,
        names=list(range(count)) if names is None else _distinguished(names),
        ks=ks,
        bootstrap=bootstrap,
        seed=seed,
        clip_benchmark=_clip_benchmark(ranks - _later_duplicates(class_vectors)[label], label, count),
    )


def _distinguished(names: Sequence[str]) -> list[str]:
    """The names, with the number of the class behind those that stand for several."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _clip_benchmark(ranks: np.ndarray, label: np.ndarray, classes: int) -> dict[str, float]:
    """The metrics of CLIP_benchmark's ``zeroshot_classification`` (Cherti and Beaumont 2022), by its names."""
    values = {"acc1": float((ranks <= 1).mean())}
    if classes >= 5:
        values["acc5"] = float((ranks <= 5).mean())
    per_class = bootstrapping.group_means((ranks == 1).astype(np.float64), label)
    return values | {"mean_per_class_recall": float(per_class(np.ones((1, len(label))))[0])}


def _later_duplicates(class_vectors: Vectors) -> np.ndarray:
    """(C,): how many later classes have exactly the same vector; each put an image's own class one rank lower."""
    vectors = class_vectors.cpu().numpy() if isinstance(class_vectors, torch.Tensor) else np.asarray(class_vectors)
    of, sizes = np.unique(vectors, axis=0, return_inverse=True, return_counts=True)[1:]
    of = of.reshape(-1)
    order = np.argsort(of, kind="stable")
    later = np.empty_like(of)
    later[order] = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(of)) - 1
    return later


def _labels(given: Sequence[int] | np.ndarray, images: int, classes: int) -> np.ndarray:
    label = np.asarray(given)
    if label.shape != (images,) or label.dtype.kind not in "iu":
        raise MmclError(f"labels: expected {images} class numbers, one an image, not {label.shape} of {label.dtype}")
    wrong = (label < 0) | (label >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise MmclError(f"labels: image {row} has class {label[row]}, but classes run from 0 to {classes - 1}")
    return label.astype(np.int64)


def _array(name: str, vectors: Any) -> np.ndarray:
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.float().cpu().numpy()
    return np.asarray(matrix(name, vectors), dtype=np.float32)
