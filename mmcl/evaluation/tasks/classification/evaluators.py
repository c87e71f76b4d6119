"""Evaluators that classify images by labelled ones, while the model learns."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmcl.config import schema
from mmcl.config.data import SourceConfig
from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.config.section import Positive
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.table import Table
from mmcl.data.batches.views import View
from mmcl.data.sources.tar.shards import is_shards
from mmcl.encoding.encoder import Encoder
from mmcl.encoding.shares import embed
from mmcl.evaluation.evaluator import Evaluator, Setup
from mmcl.evaluation.measured import Measured, SourceResults
from mmcl.evaluation.metrics.display import ACCURACY
from mmcl.evaluation.tasks.classification.few_shot import FewShotScores, few_shot
from mmcl.evaluation.tasks.classification.knn import KnnScores, knn
from mmcl.evaluation.tasks.classification.linear_probe import LinearProbeScores, linear_probe
from mmcl.evaluation.tasks.diagnostics import diagnose
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.device import resolve_precision
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")


class LabelledSourceConfig(EvaluationSourceConfig):
    """Images with a `label` each, to be classified by what the labels of other images teach."""

    train: SourceConfig | None = None
    """The labelled images to learn from; if absent those of `data.train` and `data.mix`, with the `columns` of this
    source."""


class KnnSourceConfig(LabelledSourceConfig):
    """Images to be classified by the votes of the nearest labelled ones (Wu et al. 2018, arXiv:1805.01978)."""

    task: Literal["knn"] = "knn"
    k: int = Field(default=200, ge=1)
    """Neighbours that vote; all where there are fewer."""
    temperature: Positive = 0.1
    """τ of a neighbour's weight exp(cosine / τ)."""


class LinearProbeSourceConfig(LabelledSourceConfig):
    """Images to be classified by logistic regression on the features of labelled ones."""

    task: Literal["linear_probe"] = "linear_probe"
    l2: Positive | None = None
    """Weight λ of the penalty λ/2 · ‖W‖²; if absent the one under which a validation part of the images to learn from
    is most likely, which takes nine fits."""


class FewShotSourceConfig(LabelledSourceConfig):
    """Images to be classified by a linear probe that sees a share of the labels, drawn class by class."""

    task: Literal["few_shot"] = "few_shot"
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Of the labels of each class, but at least one."""
    seeds: int = Field(default=5, ge=1)
    """Draws, over which the accuracy is the mean."""


class LabelledEvaluator(Evaluator):
    """Classification of the images of a source by other labelled ones, on the pixels that training caches.

    Args:
        settings: of the source.
        train: the rows to learn from.
        test: the rows to judge on.
        tower: that embeds their images.
        device: where to compare and fit.
    """

    headlines = ("top@1",)
    summary = ("mean_per_class",)
    display = ACCURACY
    normalize: ClassVar[bool]
    """Whether vectors of unit length are compared."""

    @classmethod
    def open(cls, settings: Any, setup: Setup) -> Self:
        where = f"evaluation.sources.{setup.name}"
        encoder, config = setup.encoder, setup.config
        if "image" not in encoder.modalities:
            raise MmclError(f"{where}: {settings.task} classifies images, which the model does not embed")
        tower = encoder.resolve("image")
        reading = Reading({"image": "image", "label": "label"}, encoder, views={"image": View("image", tower)})

        def table(sources: Sequence[SourceConfig], key: str) -> Table:
            options: dict[str, Any] = {"device": setup.device, "show_progress": setup.show_progress, "where": key}
            opened = Table(sources, reading, config, setup.scratch, **options)
            opened.require_rows()
            return opened

        train = table(_train_sources(settings, config, where), f"{where}.train")
        return cls(settings, train, table([settings], where), tower, setup.device)

    @classmethod
    def metrics(cls, settings: Any, ks: Sequence[int]) -> list[str]:
        return ["top@1", "mean_per_class"]

    @classmethod
    def judge(cls, settings: Any, encoder: Encoder, config: schema.Config) -> SourceResults:
        opened = cls.open(settings, Setup("", encoder.towers, config, None, encoder.device))
        return SourceResults({"": opened.classify(*opened.vectors(encoder.towers), bootstrap=1000)})

    def __init__(self, settings: Any, train: Table, test: Table, tower: str, device: torch.device) -> None:
        self.settings, self.train, self.test, self.tower = settings, train, test, tower
        self.source, self.device = test.name, device

    def vectors(self, encoder: Towers) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Vectors and labels to learn from, vectors and labels to judge on; all processes call this together."""
        train, test = (self._embed(encoder, table) for table in (self.train, self.test))
        return *train, *test

    @abstractmethod
    def classify(
        self, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, bootstrap: int = 0
    ) -> Measured:
        """The scores of the rows to judge on."""

    def evaluate(self, encoder: Towers, *, warn: bool = True) -> dict[str, float]:
        """``top@1`` and ``mean_per_class``, fractions in [0, 1]; and what :func:`mmcl.evaluation.diagnose` finds of the
        space, as ``space/image/effective_rank`` and so on. A space that has collapsed is warned of."""
        vectors = self.vectors(encoder)
        if distributed.rank() != 0:
            return {}
        metrics = dict(self.classify(*vectors).metrics)
        if len(vectors[2]) < 2:  # a single vector has no geometry
            return metrics
        space = diagnose(vectors[2])
        for reason in space.collapsed if warn else ():
            log.warning("%s: %s", self.source, reason)
        return metrics | {f"space/{name}": value for name, value in space.metrics().items()}

    def problems(self) -> list[dict[str, str]]:
        """The rows without an image or a label."""
        return [*self.train.problems(), *self.test.problems()]

    def warn_of_shared(self, name: str, training: Table) -> None:
        """Log a warning if images to judge on stand among those of ``training``."""
        if "image" not in training.columns:
            return
        items, owner = self.test.columns["image"].items(self.test.positions)
        learned, _ = training.columns["image"].items(training.positions)
        known = np.isin(self.test.hashes("image", training)[items], training.columns["image"].hashes[learned])
        if shared := len(np.unique(owner[known])):
            log.warning(
                "evaluation.sources.%s: the images of %d of %d rows of %s stand in the training rows, too: its numbers "
                "are better than on new images",
                *(name, shared, len(self.test.positions), self.source),
            )

    def _embed(self, encoder: Towers, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) vectors of all images and (N,) labels, of which the images of a row have the same."""
        images = table.columns["image"]
        items, owner = images.items(table.positions)
        labels = table.columns["label"].inputs(table.positions[owner])["labels"]

        def inputs(places: np.ndarray) -> dict[str, Tensor]:
            return images.inputs(items[places])

        precision = resolve_precision("auto", encoder.device)
        vectors = embed(encoder, self.tower, inputs, len(items), normalize=self.normalize, precision=precision)
        return vectors, labels.numpy()


class KnnEvaluator(LabelledEvaluator):
    """Votes of the nearest labelled images; see :func:`mmcl.evaluation.knn`."""

    Config = KnnSourceConfig
    normalize = True

    def classify(
        self, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, bootstrap: int = 0
    ) -> KnnScores:
        k, temperature = self.settings.k, self.settings.temperature
        return knn(train, train_labels, test, test_labels, k, temperature, bootstrap=bootstrap, device=self.device)


class LinearProbeEvaluator(LabelledEvaluator):
    """Logistic regression on the features of labelled images; see :func:`mmcl.evaluation.linear_probe`."""

    Config = LinearProbeSourceConfig
    normalize = False

    def classify(
        self, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, bootstrap: int = 0
    ) -> LinearProbeScores:
        l2 = self.settings.l2
        scores = linear_probe(train, train_labels, test, test_labels, l2, bootstrap=bootstrap, device=self.device)
        log.info("%s: linear probe with l2 %.3g", self.source, scores.l2)
        return scores

    @classmethod
    def metrics(cls, settings: Any, ks: Sequence[int]) -> list[str]:
        return [*super().metrics(settings, ks), "top@5"]


class FewShotEvaluator(LabelledEvaluator):
    """Linear probes on a share of the labels; see :func:`mmcl.evaluation.few_shot`."""

    Config = FewShotSourceConfig
    normalize = False

    @classmethod
    def metrics(cls, settings: Any, ks: Sequence[int]) -> list[str]:
        return ["top@1", "top@5"]

    def classify(
        self, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, bootstrap: int = 0
    ) -> FewShotScores:
        fractions, seeds = [self.settings.fraction], self.settings.seeds
        given = train, train_labels, test, test_labels
        return few_shot(*given, fractions, seeds, bootstrap=bootstrap, device=self.device)[0]


def _train_sources(settings: LabelledSourceConfig, config: schema.Config, where: str) -> list[SourceConfig]:
    """The sources to learn from: the one that is named, or those of the run with the columns of the evaluated one."""
    if settings.train is not None:
        named = [settings.train]
    else:
        own = settings.columns
        named = [of.model_copy(update={"columns": own | of.columns}) for of in (config.data.train, *config.data.mix)]
    for source in named:
        if is_shards(source.source):
            raise MmclError(
                f"{where}.train: {source.source}: labels are read from a table or folder, not from a stream"
            )
    return named
