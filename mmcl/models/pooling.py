"""How the states of a text's tokens become one vector."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("mean", "cls", "max", "last")


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """One vector a text.

    Args:
        states: (N, L, D) token states.
        mask: (N, L), 1 where there is a token and 0 where there is padding, on either side.
        how: ``mean`` over tokens, ``cls`` (the first token), ``max`` over tokens, or ``last`` token.

    Returns:
        (N, D).

    Raises:
        ValueError: ``how`` is none of these.
    """
    kept = mask.unsqueeze(-1)  # (N, L, 1)
    if how == "mean":
        return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
    if how == "max":
        return states.masked_fill(kept == 0, -torch.inf).amax(dim=1)
    rows = torch.arange(len(states), device=states.device)
    if how == "cls":
        return states[rows, mask.argmax(dim=1)]
    if how == "last":
        return states[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]
    raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {how!r}")
