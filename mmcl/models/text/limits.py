"""How many tokens a text may have."""

from __future__ import annotations

from typing import Any

UNLIMITED = int(1e30)
"""Tokens of a text where nothing limits them: transformers' own number for it."""


def tightest(*limits: object) -> int:
    """The least of several limits of a text's tokens. Below 2 (XLNet's -1) it is none, nor is what is no number."""
    numbers = [limit for limit in limits if isinstance(limit, int | float) and not isinstance(limit, bool)]
    return int(min([UNLIMITED, *(limit for limit in numbers if limit >= 2)]))


def count_positions(net: Any) -> int:
    """How many tokens a text may have: what ``net`` has positions for, :data:`UNLIMITED` without a limit."""
    count = tightest(*(getattr(net.config, name, None) for name in ("max_position_embeddings", "max_seq_len")))
    padding = position_padding(net)
    return count if padding is None or count == UNLIMITED else count - padding - 1


def position_padding(net: Any) -> int | None:
    """RoBERTa and its kin count positions from behind the padding's number, and skip tokens of that number."""
    return getattr(getattr(getattr(net, "embeddings", None), "position_embeddings", None), "padding_idx", None)
