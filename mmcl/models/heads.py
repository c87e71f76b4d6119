"""Heads: from a tower's features to the shared space, and from there to a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.config.model import HeadConfig
from mmcl.runtime.errors import MmclError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind
    for kind in (
        nn.Identity, nn.Tanh, nn.GELU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Mish, nn.Sigmoid,
        nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish,
    )
}  # fmt: skip
"""What may follow a dense layer: torch's activations without weights, by the lower-cased names of their classes."""


class Dense(NamedTuple):
    """A dense layer of a head.

    Attributes:
        width: of its output.
        bias: whether it has one.
        activation: what follows it, one of :data:`ACTIVATIONS` in any case.
        norm: what stands between the two: ``batch`` normalisation, which takes the statistics of what it is given and
            keeps no running ones, ``layer`` normalisation, or ``none``.
    """

    width: int
    bias: bool = True
    activation: str = "identity"
    norm: str = "none"


def _norm(name: str, width: int) -> list[nn.Module]:
    kinds: dict[str, list[nn.Module]] = {
        "none": [],
        "batch": [nn.BatchNorm1d(width, track_running_stats=False)],
        "layer": [nn.LayerNorm(width)],
    }
    if name not in kinds:
        raise MmclError(f"head: there is no normalisation '{name}'; {nearest(name, kinds)}")
    return kinds[name]


class Head(nn.Sequential):
    """A map from (N, ``width``) features to (N, ``dim``) embeddings: dropout, then a chain of dense layers.

    Attributes:
        width: of the features.
        config: the section it was made by; None for a chain that no section describes.
        layers: the chain.

    Raises:
        MmclError: kind ``none`` where the width is not the dimension.
    """

    def __init__(self, config: HeadConfig, width: int, dim: int) -> None:
        if config.kind == "none" and width != dim:
            raise MmclError(f"model.dim is {dim}, but head kind 'none' keeps the tower's width {width}")
        kinds = {
            "none": [],
            "linear": [Dense(dim, bias=False)],
            "mlp": [Dense(config.hidden or width, activation="gelu"), Dense(dim, bias=False)],
            "tanh": [Dense(dim, activation="tanh")],
        }
        super().__init__(nn.Dropout(config.dropout))
        self.width = width
        self.config: HeadConfig | None = config
        self.layers: list[Dense] = []
        self._extend(width, kinds[config.kind])

    @classmethod
    def from_layers(cls, width: int, layers: Sequence[Dense], dropout: float = 0.0) -> Head:
        """A head of any dense layers, with fresh weights.

        Args:
            width: of the features.
            layers: one after the other; none give the features themselves.
            dropout: on the features, in training.

        Raises:
            MmclError: there is no such activation.
        """
        head = cls(HeadConfig(kind="none", dropout=dropout), width, width)
        if layers:
            head.config = None
            head._extend(width, layers)
        return head

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], width: int, dim: int) -> Head:
        """What :meth:`spec` describes, with fresh weights."""
        if "layers" not in spec:
            return cls(HeadConfig(**spec), width, dim)
        return cls.from_layers(width, [Dense(**layer) for layer in spec["layers"]], spec["dropout"])

    def spec(self) -> dict[str, Any]:
        """What rebuilds this head, weights apart: its section, or the layers that none describes."""
        if self.config is not None:
            return self.config.model_dump()
        return {"dropout": self[0].p, "layers": [layer._asdict() for layer in self.layers]}

    @property
    def dim(self) -> int:
        """Of the embeddings."""
        return self.layers[-1].width if self.layers else self.width

    def architecture(self) -> str:
        """Its layers in words, dropout apart: heads of one architecture can have each other's weights."""
        return " → ".join([str(self.width), *map(_in_words, self.layers)])

    def forward(self, features: Tensor) -> Tensor:
        """(N, dim) embeddings of (N, width) features, which are float32 whatever the weights."""
        linear = self.linear_layers()
        return super().forward(features.to(linear[0].weight.dtype) if linear else features)

    def set_dropout(self, rate: float) -> None:
        """Drop another share of the features in training."""
        if self.config is not None:
            self.config = self.config.model_copy(update={"dropout": rate})
        self[0] = nn.Dropout(rate)

    def linear_layers(self) -> list[nn.Linear]:
        """Its linear layers, in order."""
        return [layer for layer in self if isinstance(layer, nn.Linear)]

    def _extend(self, width: int, layers: Sequence[Dense]) -> None:
        for layer in layers:
            name = layer.activation.lower()
            if name not in ACTIVATIONS:
                hint = nearest(name, ACTIVATIONS)
                raise MmclError(f"head: there is no activation '{layer.activation}'; {hint}")
            self.append(nn.Linear(width, layer.width, bias=layer.bias))
            self.extend(_norm(layer.norm, layer.width))
            if name != "identity":
                self.append(ACTIVATIONS[name]())
            self.layers.append(Dense(layer.width, layer.bias, name, layer.norm))
            width = layer.width


def _in_words(layer: Dense) -> str:
    facts = ["no bias"] * (not layer.bias) + [fact for fact in (layer.norm, layer.activation) if fact not in _DEFAULTS]
    return f"{layer.width} ({', '.join(facts)})" if facts else str(layer.width)


_DEFAULTS = {Dense(1).norm, Dense(1).activation}


class Prototypes(nn.Module):
    """K unit vectors, whose inner products with unit vectors are scores (SwAV, Caron et al. 2020, arXiv:2006.09882).

    Args:
        width: D of the vectors.
        dim: K.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width, self.dim = width, dim
        self.weight = nn.Parameter(F.normalize(torch.randn(dim, width), dim=1))

    def spec(self) -> dict[str, Any]:
        """What they are, beside their width and number."""
        return {"kind": "prototypes"}

    def architecture(self) -> str:
        """As :meth:`Head.architecture`."""
        return f"{self.width} → {self.dim} prototypes"

    def forward(self, vectors: Tensor) -> Tensor:
        """(…, K) scores of (…, D) unit vectors."""
        return F.linear(vectors, self.weight)

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring them back to unit length, from which an update has moved them."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
