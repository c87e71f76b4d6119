"""Numbers that a step computes on its device, read without making it wait."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmcl.runtime.device import widest


class Readout:
    """Named numbers of a device on their way to the host.

    On a GPU the copy is queued behind what computes them. Reading waits for that, but for nothing that was launched
    later: whoever reads a step's numbers after the next step was launched leaves the GPU at work.

    Args:
        values: tensors of one element each, on one device.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._names = list(values)
        dtype = widest(next(iter(values.values())).device)
        stacked = torch.stack([value.detach().reshape(()).to(dtype) for value in values.values()])
        self._copied: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self._host = torch.empty(stacked.shape, dtype=dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._host = stacked

    def values(self) -> dict[str, float]:
        """The numbers by name."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return dict(zip(self._names, self._host.tolist(), strict=True))
