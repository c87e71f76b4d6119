"""How often each item is drawn into a batch, estimated from the batches themselves or counted beforehand."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmcl.config.section import Section
from mmcl.data.identity import mix
from mmcl.methods.parts.state import MethodState

HASHES = 2
"""Independent hashes of an item: where two items share a bucket of one, they hardly do in the other."""


class FrequencyConfig(Section):
    """How often each item is drawn into a batch, which the logits are corrected for."""

    source: Literal["batches", "rows"] = "rows"
    """`rows`: counted in the training rows, before the first step. `batches`: estimated from the batches as they come,
    for streams, or a popularity that changes (Yi et al. 2019)."""
    buckets: int = Field(default=2**18, ge=1, le=2**31)
    """Entries of the arrays that items are hashed into; several times the number of items."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """`batches`: weight of the newest gap between two draws of an item in their moving average."""


class ItemFrequency(MethodState):
    """The probability that a row is of an item, for any number of items in a fixed memory (Yi et al. 2019,
    doi:10.1145/3298689.3346996, algorithms 2 and 3).

    Arrays A and B hold, by the hash of an item, when it was last drawn and the moving average of the time between two
    draws; its probability is 1/B. Time is counted in rows, and not in batches as in the paper, where B could not fall
    below one batch: an item that each batch has ten of would look like one that each has one of. The c draws of a batch
    count as c equal gaps since the last one. Of several hashes the longest average counts.

    Args:
        buckets: H, entries of an array.
        rate: α of the moving average.

    Attributes:
        last: A, (HASHES, H) int64.
        gap: B, (HASHES, H) float64; 0 where nothing was drawn yet.
        time: rows so far.

    >>> frequency = ItemFrequency(buckets=64, rate=0.5)
    >>> for _ in range(40):
    ...     frequency.update(torch.tensor([7, 7, 7, 8]))
    >>> frequency.log_probability(torch.tensor([7, 8])).exp().round(decimals=2).tolist()
    [0.75, 0.25]
    """

    last: Tensor
    gap: Tensor
    time: Tensor

    def __init__(self, buckets: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("last", torch.zeros(HASHES, buckets, dtype=torch.int64))
        self.register_buffer("gap", torch.zeros(HASHES, buckets, dtype=torch.float64))
        self.register_buffer("time", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, items: Tensor) -> None:
        """Take in the (N,) int64 identities of the items of a batch."""
        self.time += len(items)
        for last, gap, buckets in zip(self.last, self.gap, self._buckets(items), strict=True):
            drawn, count = buckets.unique(return_counts=True)
            between = (self.time - last[drawn]) / count.double()
            kept = torch.where(gap[drawn] == 0, 0.0, (1 - self.rate) ** count.double())
            gap[drawn] = kept * gap[drawn] + (1 - kept) * between
            last[drawn] = self.time

    @torch.no_grad()
    def count(self, items: Tensor) -> None:
        """Know the shares of the items among all rows, (R,) int64 identities, instead of estimating them."""
        self.gap.zero_()
        for gap, buckets in zip(self.gap, self._buckets(items), strict=True):
            drawn, count = buckets.unique(return_counts=True)
            gap[drawn] = len(items) / count.double()

    def log_probability(self, items: Tensor) -> Tensor:
        """(N,) float32 ln p of (N,) items; of one that was never drawn, that of one drawn once so far."""
        gaps = torch.stack([gap[buckets] for gap, buckets in zip(self.gap, self._buckets(items), strict=True)])
        unknown = self.time.clamp(min=1).double()
        return -torch.where(gaps == 0, unknown, gaps).amax(dim=0).log().float()

    def _buckets(self, items: Tensor) -> list[Tensor]:
        return [mix(items, number) % self.gap.shape[1] for number in range(HASHES)]
