"""What is learned: one section a method."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from mmcl.config.section import Positive, Section


class TeacherConfig(Section):
    """A model whose similarities are learned besides the pairs."""

    name: str
    """As `mmcl.load` takes it. It embeds every picture (as it is, not augmented) and caption once."""
    weight: Positive = 1.0
    """Weight of the distillation term; the contrastive one has weight 1."""
    temperature: Annotated[float, Field(gt=0.0)] | None = None
    """Temperature of the teacher's similarities; its own if absent, and 0.01 if it has none."""


class MatryoshkaConfig(Section):
    """The loss at several dimensions at once, so that vectors may be cut (Kusupati et al. 2022, arXiv:2205.13147)."""

    dims: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """The first so many dimensions, beside all of them."""
    weights: list[Positive] | None = None
    """Of each of `dims`, where the whole has weight 1; all 1 if absent."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> MatryoshkaConfig:
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"weights: {len(self.weights)} of them for {len(self.dims)} dims; give one for each")
        return self


class QueueConfig(Section):
    """Embeddings of past batches as further negatives, which cost a matrix product and no tower; a momentum copy, if
    there is one, costs the towers' memory once more and a pass through them, without gradient, for the keys."""

    size: int = Field(default=16384, ge=1)
    """The newest rows so many are kept, over all devices."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Decay of a moving copy of the towers, such as 0.999, which then embeds all keys, those of the batch as well
    (MoCo, He et al. 2020, arXiv:1911.05722). If null, the queue holds what the towers themselves made of past batches
    (XBM, Wang et al. 2020, arXiv:1912.06798)."""
    start: int = Field(default=0, ge=0)
    """Optimizer steps before past rows count. Without momentum, embeddings of new towers age too fast at first."""


class ClipConfig(Section):
    """Image and text towers under a symmetric InfoNCE loss (Radford et al. 2021, arXiv:2103.00020)."""

    name: Literal["clip"] = "clip"
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.07 if there is none."""
    learn_temperature: bool = True
    """Learn the temperature; it stays at least 0.01."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all candidates."""
    extra_texts: int = Field(default=0, ge=0)
    """Further captions, drawn anew for every batch from all training rows, as negatives of every picture. Nearly free
    where the text tower is frozen; more than there are takes them all."""
    queue: QueueConfig | None = None
    """Pictures of past batches as negatives of every text, and texts of past batches as negatives of every picture."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class SiglipConfig(Section):
    """Image and text towers under a pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343)."""

    name: Literal["siglip"] = "siglip"
    temperature: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Temperature at the start; if absent that of the model to start from, if it comes with a bias, and else 0.1."""
    bias: float | None = None
    """Bias at the start; that of the model to start from if absent, and else the log-odds of a positive, -ln(N - 1)
    for a global batch of N."""
    learn_temperature: bool = True
    """Learn the temperature."""
    learn_bias: bool = True
    """Learn the bias."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""


class GuideConfig(Section):
    """A model that finds false negatives: candidates that it holds closer than the positive are none (GISTEmbed,
    Solatorio 2024, arXiv:2402.16829)."""

    name: str
    """As `mmcl.load` takes it. It embeds every text once, in float32 whatever `training.precision` is."""
    margin: float = 0.0
    """A candidate is no negative if the guide's cosine to it exceeds that to the positive less this margin."""


class MlmConfig(Section):
    """Masked language modelling beside the contrast, as in the SimCSE paper (section 3.2)."""

    weight: Positive = 0.1
    """Of its loss; the contrastive one has weight 1."""
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the tokens to predict."""


class SimcseConfig(Section):
    """One text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821).

    Unsupervised, with the role `text`: a sentence goes through the tower twice, and dropout makes the pair. Supervised,
    with the roles `anchor` and `positive`, and hard negatives. With the role `score`: labelled pairs.
    """

    name: Literal["simcse"] = "simcse"
    loss: Literal["info_nce", "cosent", "cosine_mse"] = "info_nce"
    """`info_nce`, or for pairs with a score `cosent` (the order of the scores is learned) or `cosine_mse` (the scores
    themselves)."""
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.05 if there is none."""
    learn_temperature: bool = False
    """Learn the temperature; it stays at least 0.01."""
    symmetric: bool = False
    """Tell each positive's anchor from the other anchors as well."""
    hard_negative_weight: Positive = 1.0
    """The paper's α: how much a row's own hard negatives count in its denominator, beside those of other rows."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all candidates."""
    training_head: bool = False
    """A dense layer and tanh between the embeddings and the loss, in training only: the paper's MLP. The model folder
    keeps it, apart from what embeds."""
    mlm: MlmConfig | None = None
    """Predict masked tokens besides."""
    debias: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability τ⁺ that a negative is a positive in truth, which the denominator is corrected for (Chuang et al.
    2020, arXiv:2007.00224)."""
    queue: QueueConfig | None = None
    """Positives of past batches as negatives of every anchor; if symmetric, past anchors for every positive as well."""
    hardness: float = Field(default=0.0, ge=0.0)
    """Concentration β on hard negatives (Robinson et al. 2021, arXiv:2010.04592)."""
    score_range: tuple[float, float] = (0.0, 5.0)
    """Scores that mean nothing alike and all the same, for `cosine_mse`, which learns cosines from 0 to 1."""
    guide: GuideConfig | None = None
    """Leave out negatives that another model finds too close."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""

    @model_validator(mode="after")
    def _parts_fit(self) -> SimcseConfig:
        if self.debias or self.hardness:
            for name in ("label_smoothing", "guide"):
                if getattr(self, name):
                    raise ValueError(f"debias and hardness reweigh all negatives and do not go with {name}")
        if self.loss != "info_nce":
            for name in ("symmetric", "label_smoothing", "debias", "hardness", "queue", "guide", "teacher"):
                if getattr(self, name):
                    raise ValueError(f"{name} is of info_nce; loss '{self.loss}' has none of it")
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError(f"score_range: two ends in ascending order, not {self.score_range}")
        return self


def _method_name(value: Any) -> str:
    return str(value.get("name", "clip") if isinstance(value, dict) else getattr(value, "name", "clip"))


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


MethodConfig = Annotated[
    Annotated[ClipConfig, Tag("clip")]
    | Annotated[SiglipConfig, Tag("siglip")]
    | Annotated[SimcseConfig, Tag("simcse")],
    Discriminator(_method_name),
    BeforeValidator(_named),
]
