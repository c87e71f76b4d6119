"""The one vector an input in the output of a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmcl.runtime.errors import MmclError

_OWN = ("text_embeds", "image_embeds", "pooler_output")
"""What transformers' models call the one vector an input that they give, the projected one first."""


def has_own_vector(output: Any) -> bool:
    """Whether a transformers model gives one vector an input itself."""
    return any(getattr(output, name, None) is not None for name in _OWN)


def own_vector(output: Any) -> Tensor:
    """(N, D): the one vector an input that a transformers model gives itself: projected where it projects.

    Raises:
        MmclError: it gives none.
    """
    for name in _OWN:
        if (vector := getattr(output, name, None)) is not None:
            return vector.flatten(1)  # convolutional models pool to (N, D, 1, 1)
    raise MmclError(f"the model's {type(output).__name__} has no vector of its own; choose a model with a pooler")


def states_of_layers(output: Any) -> Sequence[Tensor]:
    """(N, L, D) states of every layer that a transformers model was asked for, of whose decoder where it has one; none
    where it was not asked."""
    for name in ("hidden_states", "decoder_hidden_states"):
        if (states := getattr(output, name, None)) is not None:
            return tuple(states)
    return ()


def vector_of(output: Any, how: str) -> Tensor:
    """(N, D): the features of a transformers vision model's output.

    Args:
        output: of the model.
        how: ``pooled`` (the vector it gives itself), ``cls`` or ``mean`` of its last states.
    """
    if how == "pooled":
        return own_vector(output)
    states = output.last_hidden_state
    if states.ndim == 4:  # (N, D, H, W)
        states = states.flatten(2).transpose(1, 2)
    return states[:, 0] if how == "cls" else states.mean(dim=1)
