"""The typed description of a run. Every key of a YAML experiment file is a field in one of these sections, with its
meaning and default."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmcl.config.data import AugmentationConfig, DataConfig, TextAugmentationConfig
from mmcl.config.evaluation import EvaluationConfig
from mmcl.config.methods import METHOD, AnyMethodConfig
from mmcl.config.model import ModelConfig
from mmcl.config.section import Section
from mmcl.config.training import TrainingConfig


class Config(Section):
    """One experiment in full: enough to repeat it."""

    name: str = Field(default="run", pattern=r"^[^/\\]*[^/\\.][^/\\]*$")
    """Name of the experiment; the default run folder is runs/NAME."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """The same seed, data and machine give the same run."""
    method: AnyMethodConfig = Field(default_factory=lambda: METHOD.validate({}))
    """What is learned, and its own settings."""
    data: DataConfig
    """The rows."""
    model: ModelConfig
    """The towers."""
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    """Random changes of training images."""
    text_augmentation: TextAugmentationConfig = Field(default_factory=TextAugmentationConfig)
    """Random changes of training captions."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How the weights are learned."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How the model is judged during training."""

    def augments(self, modality: str) -> bool:
        """Whether training changes the items of a modality, so that their features cannot be kept."""
        if modality == "image":
            return self.augmentation.changes or self.augmentation.size is not None
        return self.text_augmentation != TextAugmentationConfig()

    @model_validator(mode="after")
    def _sources_are_kept_apart(self) -> Config:
        if self.data.batches == "one_source" and self.data.mix:
            drawn = {
                "data.mining": self.data.mining is not None,
                "method.queue": bool(getattr(self.method, "queue", None)),
                "method.extra_texts": getattr(self.method, "extra_texts", 0) > 0,
            }
            for setting, given in drawn.items():
                if given:
                    raise ValueError(
                        f"{setting} takes negatives from all sources, which data.batches: one_source keeps apart; "
                        "leave one of the two out"
                    )
        return self
