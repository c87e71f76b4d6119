"""How a network reads texts that are shorter than others of their batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmcl.runtime.errors import MmclError

MIXED = 2e-5
"""The least part of its largest feature by which padding that is mixed in changes a text: rounding changes less."""


@dataclass(frozen=True)
class Padding:
    """How a network reads padding.

    Attributes:
        length: to which the tower pads every text for a network that reads padding, as SigLIP does, however few tokens
            the processor cuts texts at: such a network reads the last of all its positions. 0 for others. It pads on
            the tokenizer's side.
        masked: whether the network takes a mask.
        mixes: whether padding changes a text's features although it is masked, as it does where a network mixes tokens
            by convolutions or a Fourier transform: such texts are to be batched by equal length. None: not known yet.
        least_tokens: shorter texts are padded to so many, fewer of which the network cannot read (Funnel's attention).
    """

    length: int = 0
    masked: bool = True
    mixes: bool | None = None
    least_tokens: int = 1


@torch.no_grad()
def measure_padding(
    tower: Callable[..., Tensor], net: Any, padding: Padding, padding_id: int, most: int, vocabulary: int
) -> Padding:
    """``padding`` with the least number of tokens that a network reads, and whether it mixes padding in.

    Args:
        tower: (N, L) token ids, and a mask of them, to features.
        net: the network in it.
        padding: what is known.
        padding_id: the token that texts are filled up with.
        most: tokens of a text.
        vocabulary: tokens that the network knows.

    Raises:
        MmclError: the network gives no features for texts.
    """
    training = net.training
    net.eval()
    tokens = torch.arange(10, 10 + vocabulary) % vocabulary
    long = tokens[tokens != padding_id][None, : max(2, min(most, 40))]
    with torch.random.fork_rng(devices=[]):
        least = _fewest(tower, net, long)
        short = max(least, long.shape[1] // 8)
        mask = torch.ones_like(long)
        mask[:, short:] = 0
        padded = torch.where(mask == 1, long, padding_id)
        beside = tower(torch.cat([long, padded]), torch.cat([torch.ones_like(mask), mask]))[1]
        alone = tower(long[:, :short])[0]
    net.train(training)
    mixes = bool((beside - alone).abs().max() > MIXED * alone.abs().max())
    return replace(padding, mixes=mixes, least_tokens=least)


def _fewest(tower: Callable[..., Tensor], net: Any, tokens: Tensor) -> int:
    """The fewest of (1, L) tokens from which on the network reads every number of them."""

    def fails(count: int) -> Exception | None:
        try:
            tower(tokens[:, :count])
        except Exception as error:  # whatever a network meets that wants images, or boxes, beside the text
            return error
        return None

    if not any(fails(count) for count in (1, 2, 4)):
        return 1
    most = min(24, tokens.shape[1])
    if (error := fails(most)) is not None:
        reason, kind = " ".join(str(error).split())[:200], type(net).__name__
        raise MmclError(f"a {kind} gives no features for texts alone: {reason}")
    return next((count + 1 for count in range(most - 1, 0, -1) if fails(count)), 1)
