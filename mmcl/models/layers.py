"""Layers over features, of a text or of each of its tokens: what describes them, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

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
    """A dense layer.

    Attributes:
        width: of its output.
        bias: whether it has one.
        activation: what follows it, one of :data:`ACTIVATIONS` in any case.
        norm: what stands between the two: ``batch`` normalisation, which takes the statistics of what it is given and
            keeps no running ones, ``layer`` normalisation, or ``none``.
        residual: whether its input is added to what it gives; of another width, through a projection.
    """

    width: int
    bias: bool = True
    activation: str = "identity"
    norm: str = "none"
    residual: bool = False

    def dim(self, width: int) -> int:
        """Number of features that it gives for ``width``."""
        return self.width

    def modules(self, width: int) -> list[nn.Module]:
        """The layer for ``width`` features, with fresh weights.

        Raises:
            MmclError: there is no such activation or normalisation.
        """
        name = self.activation.lower()
        if name not in ACTIVATIONS:
            raise MmclError(f"head: there is no activation '{self.activation}'; {nearest(name, ACTIVATIONS)}")
        chain = [nn.Linear(width, self.width, bias=self.bias), *_norm(self.norm, self.width)]
        chain += [ACTIVATIONS[name]()] if name != "identity" else []
        return [Residual(chain, width, self.width)] if self.residual else chain


class LayerNorm(NamedTuple):
    """Layer normalisation, with a learned gain and bias."""

    def dim(self, width: int) -> int:
        """Number of features that it gives for ``width``."""
        return width

    def modules(self, width: int) -> list[nn.Module]:
        """The layer for ``width`` features, with fresh weights."""
        return [nn.LayerNorm(width)]


class Normalize(NamedTuple):
    """Unit length."""

    def dim(self, width: int) -> int:
        """Number of features that it gives for ``width``."""
        return width

    def modules(self, width: int) -> list[nn.Module]:
        """The layer, whatever the width."""
        return [UnitLength()]


class Dropout(NamedTuple):
    """In training, a share of the features is zero.

    Attributes:
        rate: the share.
    """

    rate: float

    def dim(self, width: int) -> int:
        """Number of features that it gives for ``width``."""
        return width

    def modules(self, width: int) -> list[nn.Module]:
        """The layer, whatever the width."""
        return [nn.Dropout(self.rate)]


Layer = Dense | LayerNorm | Normalize | Dropout
LAYERS: dict[str, type[Any]] = {
    "dense": Dense,
    "layer_norm": LayerNorm,
    "normalize": Normalize,
    "dropout": Dropout,
}
"""The layers by what descriptions call them."""


class UnitLength(nn.Module):
    """Each vector divided by its length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(…, D) unit vectors of (…, D) vectors; zero stays zero."""
        return F.normalize(vectors, dim=-1)


class Residual(nn.Module):
    """What some layers give, and what they were given.

    Args:
        chain: the layers.
        width: of what they are given; if another than ``dim``, it is projected.
        dim: of what they give.
    """

    def __init__(self, chain: Sequence[nn.Module], width: int, dim: int) -> None:
        super().__init__()
        self.chain = nn.Sequential(*chain)
        self.projection = nn.Identity() if width == dim else nn.Linear(width, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(…, dim) of (…, width) features."""
        return cast(Tensor, self.chain(features) + self.projection(features))


def _norm(name: str, width: int) -> list[nn.Module]:
    kinds: dict[str, list[nn.Module]] = {
        "none": [],
        "batch": [nn.BatchNorm1d(width, track_running_stats=False)],
        "layer": [nn.LayerNorm(width)],
    }
    if name not in kinds:
        raise MmclError(f"head: there is no normalisation '{name}'; {nearest(name, kinds)}")
    return kinds[name]


def layer_spec(layer: Any, kinds: Mapping[str, type[Any]] = LAYERS) -> dict[str, Any]:
    """What :func:`layer_of_spec` makes the layer, of one of ``kinds``, of again."""
    kind = next(name for name, kind in kinds.items() if isinstance(layer, kind))
    return {"kind": kind, **layer._asdict()}


def layer_of_spec(spec: Mapping[str, Any], kinds: Mapping[str, type[Any]] = LAYERS) -> Any:
    """The layer that :func:`layer_spec` described; one without a kind is dense."""
    settings = dict(spec)
    return kinds[settings.pop("kind", "dense")](**settings)
