"""How the model is evaluated during training: sources, each by the settings of the evaluator that it names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from mmcl.config.by_name import ByName
from mmcl.config.data import SourceConfig
from mmcl.config.section import Positive, Section
from mmcl.runtime.errors import nearest
from mmcl.runtime.registry import Registry


class EvaluationSourceConfig(SourceConfig):
    """Settings of a source to evaluate on. Those of an evaluator stand beside it as its ``Config``."""

    task: str
    """Name of the evaluator."""

    @model_validator(mode="before")
    @classmethod
    def _without_settings_of_other_tasks(cls, values: Any) -> Any:
        """mmcl 0.1 wrote those of both of its tasks into a run's config, unset ones too."""
        unset: dict[str, Any] = {"tasks": [], "self_matches": None}
        if not isinstance(values, dict):
            return values
        return {
            key: value
            for key, value in values.items()
            if key in cls.model_fields or key not in unset or value != unset[key]
        }


EVALUATORS: Registry[Any] = Registry(
    "mmcl.evaluators",
    "evaluator",
    {
        "retrieval": "mmcl.evaluation.tasks.retrieval_evaluator:RetrievalEvaluator",
        "few_shot": "mmcl.evaluation.tasks.classification.evaluators:FewShotEvaluator",
        "knn": "mmcl.evaluation.tasks.classification.evaluators:KnnEvaluator",
        "linear_probe": "mmcl.evaluation.tasks.classification.evaluators:LinearProbeEvaluator",
        "recommendation": "mmcl.evaluation.tasks.recommendation_evaluator:RecommendationEvaluator",
        "sts": "mmcl.evaluation.tasks.sts_evaluator:StsEvaluator",
    },
)
"""Evaluators by name. Another package adds its own by the entry-point group ``mmcl.evaluators``."""

AnySourceConfig = Annotated[
    EvaluationSourceConfig, ByName(EVALUATORS, EvaluationSourceConfig, key="task", default="retrieval")
]


class EvaluationConfig(Section):
    """How the model is judged during training."""

    sources: dict[str, AnySourceConfig] = Field(default_factory=dict)
    """Name to rows to judge by."""
    every: Positive | None = None
    """Epochs between two evaluations; at the end only if absent."""
    best: str | None = None
    """Metric whose best checkpoint becomes the model, such as `dev/image_to_text/hit@1`; the last one if absent."""
    probe: str | None = None
    """A column of labels in the training rows: a linear classifier learns them beside the towers, which get no gradient
    of it, and the log has its `probe_accuracy` on every batch before it is learned from. Rows without a label are
    skipped."""
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 5, 10), min_length=1)
    """Cut-offs of the retrieval metrics."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> EvaluationConfig:
        if self.best is not None:
            name, _, key = self.best.partition("/")
            source = self.sources.get(name)
            if source is not None and EVALUATORS[source.task].may_measure(key, source, self.ks):
                return self
            known = [
                f"{name}/{key}"
                for name, source in self.sources.items()
                for key in EVALUATORS[source.task].metrics(source, self.ks)
            ]
            hint = nearest(self.best, known) if known else "there are no evaluation.sources"
            raise ValueError(f"best: no metric '{self.best}' will be measured; {hint}")
        return self
