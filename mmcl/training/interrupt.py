"""Ctrl-C in training: it ends the run between two steps, where a checkpoint is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from mmcl.runtime import distributed


class Interrupts:
    """Within, SIGINT and SIGTERM raise ``KeyboardInterrupt``, but what is :meth:`held` is finished first.

    A second one does not wait. Signals that are ignored or handled by somebody else stay as they are, and so do those
    of several processes, which would wait for each other in different places, and of threads beside the main one.

    Attributes:
        torn: whether what was held was cut off.
    """

    def __init__(self) -> None:
        self.torn = False
        self._holding = self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread() and distributed.world_size() == 1:
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self._holding and not self._asked:
            self._asked = True
            return
        self.torn = self._holding
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context that is finished before an interrupt takes effect."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
