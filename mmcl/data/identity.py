"""Identity by hash, and random numbers that belong to a row rather than to a device, a rank or a moment.

Two rows with the same content have the same 64-bit hash, and so are not each other's negatives. The same hashes are
keys of a counter-based generator: number ``k`` of a row depends on the row's seed and on ``k`` alone, so that a run
resumed, split over ranks or computed in micro-batches draws what the plain run drew.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

NOTHING = -(2**63)
"""In place of an identity, for what a row does not have."""

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer: the increment of SplitMix64


def stable_hash(content: str | bytes) -> int:
    """A signed 64-bit hash that is the same in every process and on every machine.

    Text that is not valid Unicode (a lone surrogate) is hashed as it stands.
    """
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch has no unsigned 64-bit shift, and the arithmetic one repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalise(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014); int64 products wrap as the unsigned ones do."""
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685
    return x ^ _shift_right(x, 31)


def mix(seeds: Tensor, *more: int | Tensor) -> Tensor:
    """New independent seeds from ``seeds`` (int64, any shape) and more integers, for all (an epoch) or one for each."""
    for number in more:
        seeds = _finalise(seeds + _GAMMA) + number
    return _finalise(seeds + _GAMMA)


def uniforms(seeds: Tensor, count: int, stream: int = 0) -> Tensor:
    """Float32 numbers in [0, 1), shape (N, ``count``), from int64 ``seeds`` of shape (N,).

    Each row's numbers depend on its own seed and ``stream`` only.
    """
    keys = mix(seeds, stream)[:, None]
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device)[None, :]
    bits = _finalise(keys + counters * _GAMMA)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24
