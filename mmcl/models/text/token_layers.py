"""Layers over the states of a text's tokens, between the network and the pooling: what describes them, and what they
are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmcl.models.layers import LAYERS


class Convolution(NamedTuple):
    """Convolutions along the text, side by side (Kim 2014, arXiv:1408.5882).

    Attributes:
        channels: of each.
        kernels: how many tokens each reads; odd numbers.
    """

    channels: int
    kernels: Sequence[int]

    def dim(self, width: int) -> int:
        """Width of the states that it gives."""
        return self.channels * len(self.kernels)

    def modules(self, width: int) -> list[nn.Module]:
        """The layer for states of this width, with fresh weights."""
        return [Convolutions(width, self.channels, self.kernels)]


class Recurrence(NamedTuple):
    """A long short-term memory along the text.

    Attributes:
        hidden: width of its state, in each direction.
        layers: on top of each other.
        bidirectional: whether it reads from both ends.
        dropout: between the layers, in training.
    """

    hidden: int
    layers: int = 1
    bidirectional: bool = True
    dropout: float = 0.0

    def dim(self, width: int) -> int:
        """Width of the states that it gives."""
        return self.hidden * (2 if self.bidirectional else 1)

    def modules(self, width: int) -> list[nn.Module]:
        """The layer for states of this width, with fresh weights."""
        settings = {"dropout": self.dropout, "bidirectional": self.bidirectional}
        return [Recurrent(nn.LSTM(width, self.hidden, self.layers, batch_first=True, **settings))]


class LayerMean(NamedTuple):
    """A weighted mean of the states that several layers of the network give.

    Attributes:
        first: of the layers; 0 are the embeddings.
        last: of the layers.
    """

    first: int
    last: int

    def dim(self, width: int) -> int:
        """Width of the states that it gives."""
        return width

    def modules(self, width: int) -> list[nn.Module]:
        """The layer, with equal weights."""
        return [WeightedLayers(self.first, self.last)]


TOKEN_LAYERS: dict[str, type[Any]] = LAYERS | {
    "convolution": Convolution,
    "recurrence": Recurrence,
    "layer_mean": LayerMean,
}
"""The layers by what descriptions call them; those of :data:`~mmcl.models.layers.LAYERS` take each token by itself."""


class AlongText(nn.Module, ABC):
    """A layer that needs more of a token than its state."""

    @abstractmethod
    def forward(self, states: Tensor, mask: Tensor | None, layers: Sequence[Tensor]) -> Tensor:
        """(N, L, width) of (N, L, D) ``states``.

        Args:
            states: of the tokens.
            mask: (N, L), 1 where there is a token and 0 where there is padding; None without padding.
            layers: every layer's (N, L, D) states of the network.
        """


class Convolutions(AlongText):
    """Convolutions of several kernels, whose channels stand side by side; padding reads as zero."""

    def __init__(self, width: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, channels, size, padding=size // 2) for size in kernels)

    def forward(self, states: Tensor, mask: Tensor | None, layers: Sequence[Tensor]) -> Tensor:
        if mask is not None:
            states = states.masked_fill(mask.unsqueeze(-1) == 0, 0.0)
        return torch.cat([conv(states.transpose(1, 2)) for conv in self.convs], dim=1).transpose(1, 2)


class Recurrent(AlongText):
    """A recurrent network on each text without its padding."""

    def __init__(self, encoder: nn.LSTM) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, states: Tensor, mask: Tensor | None, layers: Sequence[Tensor]) -> Tensor:
        if mask is None:
            return self.encoder(states)[0]
        lengths = mask.sum(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=mask.shape[1])[
            0
        ]


class WeightedLayers(AlongText):
    """The mean of the states of consecutive layers, by learned weights."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first = first
        self.layer_weights = nn.Parameter(torch.ones(last + 1 - first))

    def forward(self, states: Tensor, mask: Tensor | None, layers: Sequence[Tensor]) -> Tensor:
        chosen = torch.stack([*layers[self.first :]])
        return torch.einsum("k,knld->nld", self.layer_weights, chosen) / self.layer_weights.sum()


class TokenLayers(nn.Module):
    """Token states through a chain of layers.

    Args:
        width: of the states.
        layers: one after the other, see :data:`TOKEN_LAYERS`.

    Attributes:
        layers: as given.
        width: of the states that it gives.
    """

    def __init__(self, width: int, layers: Sequence[Any] = ()) -> None:
        super().__init__()
        self.layers = list(layers)
        self.chain = nn.ModuleList()
        self._counts: list[int] = []  # modules of each
        for layer in layers:
            made = layer.modules(width)
            self.chain.extend(made)
            self._counts.append(len(made))
            width = layer.dim(width)
        self.width = width

    @property
    def reads_layers(self) -> bool:
        """Whether one needs the states of other layers of the network than the last."""
        return any(isinstance(layer, LayerMean) for layer in self.layers)

    def parts(self) -> Iterator[tuple[Any, list[nn.Module]]]:
        """Each layer with the modules that it is made of."""
        modules = iter(self.chain)
        for layer, count in zip(self.layers, self._counts, strict=True):
            yield layer, list(islice(modules, count))

    def forward(self, states: Tensor, mask: Tensor | None, layers: Sequence[Tensor]) -> Tensor:
        """(N, L, ``width``) states of (N, L, D) ones; arguments as of :class:`AlongText`."""
        for module in self.chain:
            states = module(states, mask, layers) if isinstance(module, AlongText) else module(states)
        return states
