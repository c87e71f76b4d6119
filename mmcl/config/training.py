"""How the weights are learned, and what is written meanwhile."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from mmcl.config.section import Fraction, Positive, Section


class GroupConfig(Section):
    """Parameters that learn in their own way."""

    match: str
    """A regular expression, searched for in names such as `image.tower.net.blocks.0.attn.qkv.weight`,
    `text.head.0.weight` or `logit_scale`; the first group that matches a parameter has it."""
    lr: float = Field(default=1.0, ge=0.0)
    """Factor on the learning rate; 0 keeps the parameters as they are."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """Decay of all of them, gains and biases included, whose rate `lars` then adapts as well; as elsewhere if
    absent."""

    @field_validator("match")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error})") from None
        return value


class TokenLimit(Section):
    """A size in text tokens."""

    tokens: int = Field(ge=1)
    """Text tokens, padding included."""


def _limit_kind(value: Any) -> str:
    return "TokenLimit" if isinstance(value, dict | TokenLimit) else "auto" if value == "auto" else "int"


MicroBatch = Annotated[
    Annotated[int, Field(ge=1), Tag("int")]
    | Annotated[TokenLimit, Tag("TokenLimit")]
    | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_limit_kind),
]


Precision = Literal["auto", "float32", "bfloat16", "float16"] | dict[str, Literal["float32", "bfloat16"]]


class TrainingConfig(Section):
    """How the weights are learned."""

    epochs: Positive = 10.0
    """Passes over the rows; a fraction is allowed."""
    batch_size: int = Field(default=256, ge=2)
    """Global batch: rows compared with each other in one loss, over all devices."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged before an optimizer step."""
    micro_batch: MicroBatch | None = None
    """Rows that a process takes through the towers at once, or `{tokens: 8192}` for as many rows as have so many text
    tokens, with those of mined and extra texts that fall to them; all of its share of the batch if null. `auto`: as
    many rows as fit into the memory of the device, found before the first step, and kept by a resumed run. The loss
    still compares all rows of the batch: their embeddings are computed twice and only a micro-batch's activations are
    kept (gradient caching, arXiv:2101.06983). A row of more tokens is a micro-batch of its own; where batch
    normalisation learns, it joins its neighbour, for one row has no statistics."""
    batch_norm: Literal["batch", "frozen", "sync"] = "batch"
    """Statistics in batch normalisation: those of each micro-batch of each process (`batch`); the running ones, which
    then stay as they are, for towers that were trained before (`frozen`); or those of a micro-batch over all processes
    (`sync`, CUDA only; it cannot see over micro-batches)."""
    optimizer: Literal["adamw", "sgd", "lars", "muon"] = "adamw"
    """`adamw` (arXiv:1711.05101); `sgd` with momentum; `lars` for large batches, which adapts the rate of each
    matrix to its norm (arXiv:1708.03888); `muon`, which orthogonalises the updates of matrices and has AdamW for all
    else, tables of embeddings included (arXiv:2502.16982). None of them adapts gains, biases and the temperature."""
    lr: Positive = 1e-3
    """Peak learning rate. `adamw` and `muon` take rates of the same size; `sgd` and `lars` far larger ones."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """With which power of the batch `lr` grows, which is then that of 256 rows: `linear` (Goyal et al. 2017,
    arXiv:1706.02677) or `sqrt` (Krizhevsky 2014, arXiv:1404.5997; SimCLR's 0.075 √batch is 1.2 here). `accumulate`
    makes the batch larger."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decay of matrices; gains, biases and the temperature have none. `sgd` and `lars` add it to the gradient, and take
    about 1e-4 and 1e-6."""
    weight_decay_end: float | None = Field(default=None, ge=0.0)
    """What `weight_decay` becomes by the last step, along half a cosine, such as 0.4 from 0.04 (DINO,
    arXiv:2104.14294); a group with a decay of its own keeps it. It stays as it is if absent."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Momentum of `sgd`, `lars` and `muon`, whose authors take 0.95."""
    nesterov: bool = True
    """Whether `sgd` looks ahead by its momentum; MoCo and SimSiam do not."""
    trust: Positive = 1e-3
    """Trust coefficient of `lars`."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.98)
    """Decay rates of the two moments in `adamw`, and in what `muon` has of it."""
    eps: Positive = 1e-6
    """Epsilon of `adamw`."""
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
    """Decay of a running average of the weights, such as 0.995; the average is what is evaluated and saved."""
    precision: Precision = "auto"
    """Of the towers, or of each by its name, such as `{image: bfloat16, text: float32}`; losses are in float32. `auto`:
    bfloat16 where the devices of all processes multiply it natively, but for towers that lose by it, which are
    transformers narrower than 128 on CPUs with AMX; else float32. The run's `config.yaml` says what it was, which a
    resumed run keeps. float16 is never chosen silently. Several processes, or micro-batches, learn what one learns to
    within 1e-3 in float32. In bfloat16 each part's gradient is rounded before the parts are added up: within a few
    steps two processes differed from one by 0.3% in the gradient's norm and by 0.02% in the loss."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: every one holds the full model (`ddp`), or a shard of it (`fsdp`)."""
    exchange: Literal["gather", "ring"] = "gather"
    """Several processes compare their rows with those of all: every one gathers all embeddings (`gather`), or they
    travel around and none holds more than two processes' at a time (`ring`), for batches whose embeddings are large."""
    timeout: float = Field(default=10.0, gt=0.0, le=525_600.0)
    """Minutes after which a process that does not answer the others is held for lost, which ends the run; `--resume`
    goes on with it. One that was killed is noticed at once where connections close with it (CPU). Evaluating and
    writing are allowed any time."""
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
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Trackers that get the metrics besides `metrics.jsonl`; each is an extra, such as `mmcl[wandb]`. TensorBoard's
    events are in the run folder; the others are set up by their own files and environment variables."""

    @model_validator(mode="before")
    @classmethod
    def _tensorboard_was_a_switch(cls, values: Any) -> Any:
        """Runs of older versions have `tensorboard: true` in their `config.yaml`."""
        if isinstance(values, dict) and isinstance(values.get("tensorboard"), bool):
            values = dict(values)
            if values.pop("tensorboard"):
                values.setdefault("trackers", ["tensorboard"])
        return values
