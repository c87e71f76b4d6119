"""Heads between the towers and the loss, for training only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmcl.config.model import WIDEST
from mmcl.config.section import Section
from mmcl.models.heads import Head
from mmcl.models.layers import Dense

Width = Annotated[int, Field(ge=1, le=WIDEST)]


class MlpConfig(Section):
    """A multi-layer perceptron, in training only; the model folder keeps it, apart from the encoder."""

    hidden: list[Width] = Field(default_factory=lambda: [2048])
    """Widths of the hidden layers; none for a single dense layer."""
    dim: Width = 128
    """Width of the output."""
    bias: bool = True
    """Bias of the output. A hidden layer has one where no normalisation follows."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation after each hidden layer. `batch` takes the statistics of the global batch, whatever the
    micro-batches and processes (under `training.exchange: ring`, those of a process's rows), and keeps no running
    ones."""
    norm_output: bool = False
    """Whether the output has the same normalisation, instead of a bias."""
    activation: Literal["relu", "gelu"] = "relu"
    """After each hidden layer."""


def mlp_head(config: MlpConfig, width: int) -> Head:
    """The head that ``config`` describes, from (N, ``width``) to (N, ``config.dim``)."""
    hidden = [Dense(size, config.norm == "none", config.activation, config.norm) for size in config.hidden]
    normed = config.norm_output and config.norm != "none"
    output = Dense(config.dim, config.bias and not normed, norm=config.norm if normed else "none")
    return Head.from_layers(width, [*hidden, output])
