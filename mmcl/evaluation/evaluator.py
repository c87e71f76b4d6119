"""The contract of an evaluator, and the evaluators by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from mmcl.config import schema
from mmcl.config.evaluation import EVALUATORS, EvaluationConfig, EvaluationSourceConfig
from mmcl.data.batches.table import Table
from mmcl.data.sources.tar.shards import is_shards
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.measured import SourceResults
from mmcl.evaluation.metrics.display import Display
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


@dataclass(frozen=True)
class Setup:
    """What an evaluator is opened with, beside the settings of its source.

    Attributes:
        name: of the source in ``evaluation.sources``, for messages.
        encoder: the model to evaluate; its towers say what their inputs are.
        config: of the run.
        scratch: folder for the features of frozen towers; None: they are not computed ahead.
        device: where frozen towers run.
        show_progress: a bar on stderr; for a terminal if absent.
    """

    name: str
    encoder: Towers
    config: schema.Config
    scratch: Path | None
    device: torch.device
    show_progress: bool | None = None


class Evaluator(Protocol):
    """Evaluates a model on one source of data, as often as training asks.

    ``evaluation.sources.NAME.task`` of a config names the class. Another package registers one through the entry-point
    group ``mmcl.evaluators``.

    A metric's *key* is what :meth:`evaluate` calls it, with or without more path in front: ``hit@1``,
    ``image_to_text/hit@1``, ``dev/image_to_text/hit@1``. Its *name* is the last part of the key.
    """

    Config: ClassVar[type[EvaluationSourceConfig]]
    """The settings of a source of its task; its field ``task`` is the name, of type ``Literal``, and the default."""
    headlines: ClassVar[tuple[str, ...]]
    """Names of the metrics that a log line shows, the most telling first."""
    summary: ClassVar[tuple[str, ...]] = ()
    """Names, without their cut-offs, of other metrics for a model card or a short table."""
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    """Names, without their cut-offs, of the metrics of which the lower value is the better one."""
    display: ClassVar[Display] = Display()
    """How a report shows the metrics; where it names none to lead, the headlines do."""

    source: str
    """What messages call the rows."""

    @classmethod
    def open(cls, settings: Any, setup: Setup) -> Evaluator:
        """The evaluator of a source.

        Args:
            settings: of the source.
            setup: the model, the run and where to compute.

        Raises:
            MmclError: the source cannot be read, has no usable row, or does not fit the model.
        """

    @classmethod
    def metrics(cls, settings: Any, ks: Sequence[int]) -> list[str]:
        """The keys of the metrics by which a checkpoint may be chosen.

        Args:
            settings: of the source.
            ks: cut-offs of the evaluation.
        """

    @classmethod
    def may_measure(cls, key: str, settings: Any, ks: Sequence[int]) -> bool:
        """Whether ``key`` can be among the metrics, as far as is known before the source is opened."""
        return key in cls.metrics(settings, ks)

    @classmethod
    def higher_is_better(cls, key: str) -> bool:
        """Whether the higher of two values of a metric is the better one."""
        return _base(key) not in cls.lower_is_better

    @classmethod
    def is_headline(cls, key: str) -> bool:
        """Whether a log line shows the metric."""
        return _name(key) in cls.headlines

    @classmethod
    def in_summary(cls, key: str) -> bool:
        """Whether a model card shows the metric."""
        return cls.is_headline(key) or _base(key) in cls.summary

    @classmethod
    def shown(cls) -> Display:
        """How a report shows the metrics."""
        own = cls.display
        return replace(own, leading=own.leading or (cls.headlines,), lower_is_better=cls.lower_is_better)

    @classmethod
    def judge(cls, settings: Any, encoder: Encoder, config: schema.Config) -> SourceResults | None:
        """What a finished model does on a source, for its report: beside the metrics intervals, chance and examples.

        Args:
            settings: of the source.
            encoder: the model.
            config: of its run.

        Returns:
            None if there is nothing to add to what :meth:`evaluate` found, as by default.

        Raises:
            MmclError: the source cannot be read, or has no usable row.
        """
        return None

    def evaluate(self, encoder: Towers, *, warn: bool = True) -> dict[str, float]:
        """The metrics of ``encoder``, by key; empty in all processes but the first. All processes call this together.

        Args:
            encoder: the model with its weights as they are.
            warn: whether to warn of what looks wrong with the model; False for one that is not trained yet.
        """

    def problems(self) -> list[dict[str, str]]:
        """The rows that cannot be used: id, role and reason of each."""
        return []

    def warn_of_shared(self, name: str, training: Table) -> None:
        """Log a warning if rows of the source called ``name`` stand among the training rows, as far as can be known."""
        return


def evaluator_of(key: str, config: EvaluationConfig) -> type[Evaluator]:
    """The class of the evaluator that measures ``SOURCE/metric``, a key of a training log.

    Raises:
        KeyError: ``evaluation.sources`` lacks SOURCE.
    """
    kind: type[Evaluator] = EVALUATORS[config.sources[key.partition("/")[0]].task]
    return kind


def summary(metrics: Mapping[str, float], config: EvaluationConfig) -> dict[str, float]:
    """Of the metrics of a training log, by ``SOURCE/metric``, those for a model card or a short table."""
    return {key: value for key, value in metrics.items() if evaluator_of(key, config).in_summary(key)}


def open_evaluator(settings: EvaluationSourceConfig, setup: Setup) -> Evaluator:
    """What ``evaluation.sources.NAME`` describes.

    Args:
        settings: of the source.
        setup: the model, the run and where to compute.

    Raises:
        MmclError: the source cannot be read, has no usable row, or does not fit the task or the model.
    """
    if is_shards(settings.source):
        raise MmclError(
            f"evaluation.sources.{setup.name}: {settings.source}: judging needs a table or folder, not a stream"
        )
    kind: type[Evaluator] = EVALUATORS[settings.task]
    return kind.open(settings, setup)


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _base(key: str) -> str:
    """``hit`` of ``image_to_text/hit@1``."""
    return _name(key).partition("@")[0]
