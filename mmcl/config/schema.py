"""The typed description of a run. Every key of a YAML experiment file is a field here, with its meaning and default."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mmcl.runtime.errors import nearest

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Range = tuple[float, float]


class Section(BaseModel):
    """A part of a config: unknown keys are refused, so that a typo never passes in silence."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class SourceConfig(Section):
    """Where rows come from."""

    source: str
    """A CSV, TSV, JSON-lines or Parquet file, a folder, `sample:NAME`, or the name of a data set on the hub."""
    split: str | None = None
    """The part of the source to read, where it has parts."""


class JudgedSourceConfig(SourceConfig):
    """Where rows to judge by come from."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Role to column name in this source, where it differs from `data.columns`."""


class TrainSourceConfig(SourceConfig):
    """Where training rows come from. Beside tables and folders: WebDataset tar shards, read as a stream, named by a
    path, a URL or `pipe:COMMAND` with braces for numbers, such as `shards/train-{0000..0019}.tar`."""

    weight: Positive | None = None
    """Share of the samples drawn from this source, relative to the others'. Without weights every row of every source
    comes once an epoch."""
    samples: int | None = Field(default=None, ge=1)
    """Samples that count as one epoch of this source; all its rows if absent. Tar shards that cannot be counted (a URL,
    a pipe) need it."""


class ImageConfig(Section):
    """How a picture becomes pixels."""

    size: int = Field(default=224, ge=8)
    """Side of the square that the image tower sees, in pixels."""
    resize: Literal["crop", "squash", "pad"] = "crop"
    """`crop`: shorter side to `size`, centre crop. `squash`: ignore the aspect ratio. `pad`: white borders."""


class DataConfig(Section):
    """The rows, their columns and what to do with bad ones."""

    train: TrainSourceConfig
    """Rows to learn from."""
    mix: list[TrainSourceConfig] = Field(default_factory=list)
    """Further sources, mixed with `train`; with weights on all of them, or on none."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role to column name, for example `{image: path, text: caption}`. A role not named is its own column name."""
    image: ImageConfig = Field(default_factory=ImageConfig)
    """How a picture becomes pixels, in training and in use."""
    on_error: Literal["skip", "fail"] = "skip"
    """An unreadable picture or a missing text: skip the row, count and list it, or stop the run."""
    cache_gb: float = Field(default=20.0, ge=0.0)
    """Largest cache of decoded pixels on disk, in GB; beyond it pictures are decoded again in every epoch."""
    workers: int = Field(default=0, ge=0)
    """Processes, for every device, that prepare batches; 0 is a thread beside the training loop."""
    prefetch: int = Field(default=2, ge=1)
    """Batches that each worker prepares ahead."""
    shuffle: int = Field(default=5000, ge=1)
    """Tar shards: samples that a worker shuffles at a time, block by block; whole shards are shuffled besides."""


class AugmentationConfig(Section):
    """Random changes of a training picture, drawn anew for every sample. The defaults change nothing."""

    crop_scale: Range = (1.0, 1.0)
    """Area of the random crop as a share of the picture (Inception-style crop); (1, 1) is off."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Aspect ratio of the random crop."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    rotate: float = Field(default=0.0, ge=0.0, le=180.0)
    """Largest rotation either way, in degrees."""
    brightness: float = Field(default=0.0, ge=0.0)
    """Brightness factor is drawn from [1 - b, 1 + b]."""
    contrast: float = Field(default=0.0, ge=0.0)
    """Contrast factor is drawn from [1 - c, 1 + c]."""
    saturation: float = Field(default=0.0, ge=0.0)
    """Saturation factor is drawn from [1 - s, 1 + s]."""
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    """Largest hue shift either way, as a share of the colour circle."""
    jitter_prob: Fraction = 1.0
    """Probability that brightness, contrast, saturation and hue change at all."""
    greyscale: Fraction = 0.0
    """Probability that colour is dropped."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: Range = (0.1, 2.0)
    """Standard deviation of the blur, in pixels."""
    fill: Fraction = 1.0
    """Grey level of what lies outside the picture; 1 is white."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> AugmentationConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise ValueError(f"{name}: two positive ends in ascending order, not ({low}, {high})")
        if self.crop_scale[1] > 1.0:
            raise ValueError("crop_scale: a crop cannot exceed the picture, so its upper end is at most 1")
        return self


class TextAugmentationConfig(Section):
    """Random changes of a training caption, drawn anew for every sample. The defaults change nothing."""

    drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a token is left out; the special ones and at least one other stay."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Smallest share of the tokens that stays when a caption is cut to a random run of its tokens; 1 is off."""


class HeadConfig(Section):
    """What maps a tower's features to the shared space."""

    kind: Literal["linear", "mlp", "none"] = "linear"
    """`linear`, `mlp` (one hidden layer with GELU), or `none` where the tower's width already is `model.dim`."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the hidden layer of `mlp`; the tower's own width if absent."""
    dropout: Fraction = 0.0
    """Dropout on the features before the head, in training."""


class LoraConfig(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685), merged when the model is written.
    Needs the extra `mmcl[lora]`."""

    rank: int = Field(default=8, ge=1)
    """Rank of the update of each matrix."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' input."""
    targets: list[str] | None = None
    """Last parts of the names of the layers of the blocks to adapt, such as `[q_proj, v_proj]` or, for open_clip's
    attention as a whole, `[attn]`; all linear ones if absent."""


class TowerConfig(Section):
    """What every tower has."""

    frozen: bool = False
    """Keep the weights as they are. Without augmentation a frozen tower runs once and its features are cached."""
    freeze_blocks: int = Field(default=0, ge=0)
    """Keep the layers before the first block, and the first so many blocks, as they are."""
    lora: LoraConfig | None = None
    """Learn low-rank adapters instead of the weights."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    head: HeadConfig = Field(default_factory=HeadConfig)
    """What maps the features to the shared space."""


class ImageTowerConfig(TowerConfig):
    """The tower that embeds pictures."""

    name: str = "timm:resnet18"
    """`timm:NAME` for any timm model, `open_clip:NAME` for the visual tower of any open_clip model,
    `transformers:NAME` (a hub name or folder) for any vision model of transformers: ViT, DINOv2, SigLIP, ..."""
    pretrained: str | bool = False
    """timm and transformers: whether to load the pretrained weights. open_clip: their tag, such as
    `laion2b_s34b_b79k`, or a checkpoint file."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's `create_model`; of open_clip, settings of its `vision_cfg`."""
    patch_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the patches that a vision transformer does not see in training (FLIP, arXiv:2212.00794)."""


class TokenizerConfig(Section):
    """A SentencePiece unigram tokenizer trained on the run's own captions."""

    vocab_size: int = Field(default=8000, ge=16)
    """Largest number of pieces; small corpora give fewer."""
    lowercase: bool = True
    """Fold case before splitting."""
    character_coverage: float = Field(default=0.9995, gt=0.0, le=1.0)
    """Share of characters the pieces must cover; 0.9995 suits languages with many characters, 1.0 small alphabets."""
    name: str | None = None
    """Take this tokenizer instead of training one: a folder of `mmcl tokenizer train`, or any of transformers'."""


class TextTowerConfig(TowerConfig):
    """The tower that embeds texts."""

    name: str = "scratch"
    """A transformers or sentence-transformers name or folder, `sample:minilm`, `open_clip:NAME` for the text tower of
    any open_clip model, or `scratch`: a small new one."""
    pretrained: str | bool = True
    """transformers: whether to load the weights. open_clip: their tag or a checkpoint file; `true` starts anew, since
    no tag is named. Ignored for `scratch`."""
    pooling: Literal["mean", "cls", "max", "last"] | None = None
    """How token states become one vector; as the model's own folder says, else `mean`."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longer texts are cut here; the model's own limit if absent (64 for `scratch`)."""
    layers: int = Field(default=4, ge=1)
    """`scratch`: number of transformer layers."""
    width: int = Field(default=256, ge=8)
    """`scratch`: width of the transformer."""
    heads: int = Field(default=4, ge=1)
    """`scratch`: number of attention heads; divides `width`."""
    dropout: Fraction = 0.1
    """`scratch`: dropout within the transformer."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """`scratch`: how its tokenizer is trained."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextTowerConfig:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} attention heads do not divide the width {self.width}")
        return self


class ModelConfig(Section):
    """The towers and the space they share."""

    name: str | None = None
    """A whole model to start from, as `mmcl.load` takes it: `ViT-B-32/laion2b_s34b_b79k`, `hf-hub:...`, a folder or a
    run. The sections below then say what to freeze, adapt or change, and name no towers."""
    dim: int = Field(default=256, ge=2)
    """Dimension of the embeddings; that of the model where `name` names one."""
    image: ImageTowerConfig | None = None
    """The image tower, where the method has one."""
    text: TextTowerConfig | None = None
    """The text tower, where the method has one."""


class TeacherConfig(Section):
    """A model whose similarities are learned besides the pairs."""

    name: str
    """As `mmcl.load` takes it. It embeds every picture (as it is, not augmented) and caption once."""
    weight: Positive = 1.0
    """Weight of the distillation term; the contrastive one has weight 1."""
    temperature: Annotated[float, Field(gt=0.0)] | None = None
    """Temperature of the teacher's similarities; its own if absent, and 0.01 if it has none."""


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
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""


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


def _method_name(value: Any) -> str:
    return str(value.get("name", "clip") if isinstance(value, dict) else getattr(value, "name", "clip"))


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


MethodConfig = Annotated[
    Annotated[ClipConfig, Tag("clip")] | Annotated[SiglipConfig, Tag("siglip")],
    Discriminator(_method_name),
    BeforeValidator(_named),
]


class GroupConfig(Section):
    """Parameters that learn in their own way."""

    match: str
    """A regular expression, searched for in names such as `image.tower.net.blocks.0.attn.qkv.weight`,
    `text.head.0.weight` or `logit_scale`; the first group that matches a parameter has it."""
    lr: float = Field(default=1.0, ge=0.0)
    """Factor on the learning rate; 0 keeps the parameters as they are."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """Decay of all of them, gains and biases included; as elsewhere if absent."""

    @field_validator("match")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error})") from None
        return value


class TrainingConfig(Section):
    """How the weights are learned."""

    epochs: Positive = 10.0
    """Passes over the rows; a fraction is allowed."""
    batch_size: int = Field(default=256, ge=2)
    """Global batch: rows compared with each other in one loss, over all devices."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged before an optimizer step."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decay of matrices; gains, biases and the temperature have none."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.98)
    """AdamW's decay rates of the two moments."""
    eps: Positive = 1e-6
    """AdamW's epsilon."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup: float = Field(default=0.1, ge=0.0)
    """Warm-up: a share of all steps if below 1, else a number of steps."""
    clip_grad: float | None = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient; none if null."""
    layer_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    """Factor on the learning rate from each block of a tower to the one before it, such as 0.75 in fine-tuning: the
    first layers, which are the most general, change least."""
    groups: list[GroupConfig] = Field(default_factory=list)
    """Parameters, by their names, that learn in their own way."""
    wise_ft: tuple[Fraction, ...] = ()
    """Shares of the learned weights in a weight-space ensemble with the starting ones (WiSE-FT, arXiv:2109.01903).
    The one that judges best by `evaluation.best` is saved; the first if that names nothing."""
    average: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay of a running average of the weights, such as 0.995; the average is what is judged and saved."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the hardware multiplies it natively, else float32. float16 is never chosen silently."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: every one holds the whole model (`ddp`), or a shard of it (`fsdp`)."""
    compile: bool = False
    """Compile the towers with `torch.compile`: slower to start, faster afterwards."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of metrics."""
    save_every: int = Field(default=200, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept; the best is kept besides."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""


class EvaluationConfig(Section):
    """How the model is judged during training."""

    sources: dict[str, JudgedSourceConfig] = Field(default_factory=dict)
    """Name to rows, judged by retrieval in both directions."""
    every: Positive | None = None
    """Epochs between two evaluations; at the end only if absent."""
    best: str | None = None
    """Metric whose best checkpoint becomes the model, such as `dev/image_to_text/hit@1`; the last one if absent."""
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 5, 10), min_length=1)
    """Cut-offs of the retrieval metrics."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> EvaluationConfig:
        if self.best is not None:
            at_k = [f"{name}@{k}" for name in ("hit", "recall", "precision", "ndcg", "map") for k in self.ks]
            ways = [f"{source}/{way}" for source in self.sources for way in ("image_to_text", "text_to_image")]
            known = [f"{way}/{name}" for way in ways for name in (*at_k, "mrr", "median_rank")]
            if self.best not in known:
                hint = nearest(self.best, known) if known else "there are no evaluation.sources"
                raise ValueError(f"best: no metric '{self.best}' will be measured; {hint}")
        return self


class Config(Section):
    """One experiment, whole: enough to repeat it."""

    name: str = Field(default="run", pattern=r"^[^/\\]*[^/\\.][^/\\]*$")
    """Name of the experiment; the default run folder is runs/NAME."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """The same seed, data and machine give the same run."""
    method: MethodConfig = Field(default_factory=ClipConfig)
    """What is learned, and its own settings."""
    data: DataConfig
    """The rows."""
    model: ModelConfig
    """The towers."""
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    """Random changes of training pictures."""
    text_augmentation: TextAugmentationConfig = Field(default_factory=TextAugmentationConfig)
    """Random changes of training captions."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How the weights are learned."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How the model is judged during training."""
