"""Heads: from a tower's features to the shared space, and from there to a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.config.model import HeadConfig
from mmcl.models.layers import Dense, Layer, layer_of_spec, layer_spec
from mmcl.runtime.errors import MmclError


class Head(nn.Sequential):
    """A map from (N, ``width``) features to (N, ``dim``) embeddings: dropout, then a chain of layers.

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
        kinds: dict[str, list[Dense]] = {
            "none": [],
            "linear": [Dense(dim, bias=False)],
            "mlp": [Dense(config.hidden or width, activation="gelu"), Dense(dim, bias=False)],
            "tanh": [Dense(dim, activation="tanh")],
        }
        super().__init__(nn.Dropout(config.dropout))
        self.width = width
        self.config: HeadConfig | None = config
        self.layers: list[Layer] = []
        self._counts: list[int] = []  # modules of each
        self._extend(width, kinds[config.kind])

    @classmethod
    def from_layers(cls, width: int, layers: Sequence[Layer], dropout: float = 0.0) -> Head:
        """A head of any layers, with fresh weights.

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
        return cls.from_layers(width, [layer_of_spec(layer) for layer in spec["layers"]], spec["dropout"])

    def spec(self) -> dict[str, Any]:
        """What rebuilds this head, weights apart: its section, or the layers that none describes."""
        if self.config is not None:
            return self.config.model_dump()
        return {"dropout": self[0].p, "layers": [layer_spec(layer) for layer in self.layers]}

    @property
    def dim(self) -> int:
        """Of the embeddings."""
        width = self.width
        for layer in self.layers:
            width = layer.dim(width)
        return width

    def architecture(self) -> str:
        """Its layers in words, dropout apart: heads of one architecture can have each other's weights."""
        return " → ".join([str(self.width), *map(_in_words, self.layers)])

    def forward(self, features: Tensor) -> Tensor:
        """(N, dim) embeddings of (N, width) features, which are float32 whatever the weights."""
        weight = next(self.parameters(), None)
        return super().forward(features if weight is None else features.to(weight.dtype))

    def set_dropout(self, rate: float) -> None:
        """Drop another share of the features in training."""
        if self.config is not None:
            self.config = self.config.model_copy(update={"dropout": rate})
        self[0] = nn.Dropout(rate)

    def linear_layers(self) -> list[nn.Linear]:
        """Its linear layers, in order."""
        return [layer for layer in self if isinstance(layer, nn.Linear)]

    def parts(self) -> Iterator[tuple[Layer, list[nn.Module]]]:
        """Each layer with the modules that it is made of."""
        modules = iter(list(self)[1:])
        for layer, count in zip(self.layers, self._counts, strict=True):
            yield layer, list(islice(modules, count))

    def _extend(self, width: int, layers: Sequence[Layer]) -> None:
        for layer in layers:
            made = layer.modules(width)
            self.extend(made)
            self.layers.append(layer)
            self._counts.append(len(made))
            width = layer.dim(width)


def _in_words(layer: Layer) -> str:
    if not isinstance(layer, Dense):
        return type(layer).__name__.lower()
    facts = ["no bias"] * (not layer.bias) + ["residual"] * layer.residual
    facts += [fact for fact in (layer.norm, layer.activation.lower()) if fact not in _DEFAULTS]
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
