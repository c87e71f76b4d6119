"""Work shared among the threads of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def in_threads(work: Callable[[T], None], items: Sequence[T], least: int = 1) -> None:
    """Call ``work`` for each item, in as many threads as torch uses, each of which has ``least`` items or more.

    In each of them torch uses one thread. So they wait for each other once, rather than in every operation, and what is
    computed does not depend on their number. ``work`` is called in inference mode, in which small operations take less
    time: it writes to tensors that were made before.
    """
    before = torch.get_num_threads()
    threads = max(1, min(before, len(items) // least))
    todo = iter(items)

    def share(_: int) -> None:
        with torch.inference_mode():
            for item in todo:  # the next one that no thread has
                work(item)

    if before == 1 or len(items) <= 1:
        share(0)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(share, range(threads)))
    finally:
        torch.set_num_threads(before)  # for threads to come: this one's own number has not changed
