"""Where the time goes: once a minute, what share the loader, the device and communication took."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mmcl.runtime import distributed

log = logging.getLogger("mmcl")
SECONDS_BETWEEN_LINES = 60.0


class Shares(NamedTuple):
    """Shares of the wall time between two lines, in [0, 1].

    Attributes:
        loader: the loop waited for a batch.
        communication: data went from process to process, partly while the device computed. Measured in one step.
        device: everything else, which is the step itself.
    """

    loader: float
    communication: float
    device: float


class Clock:
    """Counts steps and adds up the time that a loop waits for its batches, and looks into one step a minute for
    communication."""

    def __init__(self, device: torch.device, every: float = SECONDS_BETWEEN_LINES) -> None:
        self.device = device
        self.every = every
        self._begin()
        self._counted, self._counted_since = 0, time.monotonic()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Around what is no part of learning, such as an evaluation: its time does not count."""
        start = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - start
            self._since += passed
            self._counted_since += passed

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._waited = 0.0
        self._communicated: float | None = None if distributed.world_size() > 1 else 0.0
        self._steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a batch."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step; the third one after each line is looked into, if there are several processes."""
        self._steps += 1
        self._counted += 1
        if self._communicated is not None or self._steps != 3:
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its own start and stop on stderr
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
        start = time.monotonic()
        with profile(activities=kinds) as profiler:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.monotonic() - start
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in profiler.events() or []
            if event.name.startswith(("gloo:", "nccl"))
        ]
        self._communicated = min(1.0, _covered(spans) / 1e6 / seconds)

    def rate(self) -> float:
        """Steps a second since it was last asked for."""
        rate = self._counted / (time.monotonic() - self._counted_since)
        self._counted, self._counted_since = 0, time.monotonic()
        return rate

    def tick(self) -> Shares | None:
        """After a step: the shares, once a minute, and a line about them."""
        passed = time.monotonic() - self._since
        if passed < self.every:
            return None
        loader = self._waited / passed
        communication = (self._communicated or 0.0) * (1 - loader)
        shares = Shares(loader, communication, 1 - loader - communication)
        if distributed.rank() == 0:
            several = f", communication {communication:.0%}" if distributed.world_size() > 1 else ""
            log.info("time: loader %.0f%%, %s %.0f%%%s", 100 * loader, self.device.type, 100 * shares.device, several)
        self._begin()
        return shares


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
