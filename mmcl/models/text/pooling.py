"""How the states of a text's tokens become one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmcl.runtime.errors import MmclError, nearest

LAYERS = {"first_last": (1, -1), "last_two": (-2, -1)}
"""Poolings that average the states of two layers, by their numbers in ``hidden_states``, where 0 is the embeddings.
The first layer is the first transformer layer, as in SimCSE's code since its authors corrected it (they had taken
the embeddings) and in BERT-flow (Li et al. 2020, arXiv:2011.05864)."""

POOLINGS = ("mean", "weighted_mean", "mean_sqrt_len", "max", "cls", "last", *LAYERS)


def split_pooling(how: str) -> list[str]:
    """The names of the poolings that ``how`` concatenates: ``mean+max`` gives ``["mean", "max"]``.

    Raises:
        MmclError: one of them is not known.
    """
    names = how.split("+")
    for name in names:
        if name not in POOLINGS:
            raise MmclError(f"there is no pooling '{name}' of token states; {nearest(name, POOLINGS)}")
    return names


def reads_layers(how: str) -> bool:
    """Whether a pooling needs the states of other layers than the last."""
    return not LAYERS.keys().isdisjoint(how.split("+"))


def pool(
    states: Tensor,
    mask: Tensor | None,
    how: str,
    *,
    skipped: Tensor | None = None,
    layers: Sequence[Tensor] = (),
    weights: Tensor | None = None,
) -> Tensor:
    """One vector a text, in float32 at least: a sum of many bfloat16 states would lose what tells texts apart.

    Args:
        states: (N, L, D) token states.
        mask: (N, L), 1 where there is a token and 0 where there is padding, on either side; None without padding.
        how: ``mean`` over tokens; ``weighted_mean``, the i-th token weighing i (SGPT, Muennighoff 2022,
            arXiv:2202.08904); ``mean_sqrt_len``, the sum over tokens by the root of their number; ``max`` over
            tokens; ``cls`` (the first token); ``last`` token; ``first_last`` and ``last_two``, the mean over tokens of
            the average of two :data:`LAYERS`; or several of them joined by ``+``.
        skipped: (N,) number of leading tokens, a prompt's, that count for nothing; at least one token is kept.
        layers: every layer's (N, L, D) states, for those that read them.
        weights: (N, L) of the tokens in the plain ``mean``, where they do not count alike.

    Returns:
        (N, D), or (N, k·D) of k poolings in their order.

    Raises:
        MmclError: ``how`` is none of these.
    """
    kept = mask
    if skipped is not None:
        mask = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device) if mask is None else mask
        kept = mask * (mask.cumsum(dim=1) > skipped.clamp(max=mask.sum(dim=1) - 1).unsqueeze(1))
    vectors = []
    for name in split_pooling(how):
        if name in LAYERS:
            first, second = LAYERS[name]
            average = (_wide(layers[first]) + _wide(layers[second])) / 2
            vectors.append(_pool(average, kept, "mean"))
        elif name == "weighted_mean":
            vectors.append(_position_weighted_mean(_wide(states), mask, kept))
        elif name == "mean" and weights is not None:
            vectors.append(_mean(_wide(states), weights if kept is None else weights * kept))
        else:
            vectors.append(_pool(states, kept, name))
    return torch.cat(vectors, dim=1) if len(vectors) > 1 else vectors[0]


def _pool(states: Tensor, kept: Tensor | None, how: str) -> Tensor:
    if how in ("cls", "last"):
        return _wide(_one_token(states, kept, how))
    if kept is None:
        if how == "max":
            return _wide(states.amax(dim=1))
        mean, root = _wide(states).mean(dim=1), states.shape[1] ** 0.5
        return mean * root if how == "mean_sqrt_len" else mean
    if how == "max":
        return _wide(states.masked_fill(kept.unsqueeze(-1) == 0, -torch.inf).amax(dim=1))
    count = kept.sum(dim=1, keepdim=True).clamp(min=1)
    total = (_wide(states) * kept.unsqueeze(-1)).sum(dim=1)
    return total / (count.sqrt() if how == "mean_sqrt_len" else count)


def _one_token(states: Tensor, kept: Tensor | None, how: str) -> Tensor:
    if kept is None:
        return states[:, 0 if how == "cls" else -1]
    rows = torch.arange(len(states), device=states.device)
    if how == "cls":
        return states[rows, kept.argmax(dim=1)]
    return states[rows, kept.shape[1] - 1 - kept.flip(1).argmax(dim=1)]


def _position_weighted_mean(states: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
    """Positions count from the first token, a skipped one too."""
    if mask is None or kept is None:
        weights = torch.arange(1, states.shape[1] + 1, device=states.device).expand(states.shape[:2])
    else:
        weights = mask.cumsum(dim=1) * kept
    return _mean(states, weights)


def _mean(states: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(dim=1, keepdim=True)
    return (states * weights.unsqueeze(-1)).sum(dim=1) / total.clamp(min=torch.finfo(torch.float32).tiny)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
