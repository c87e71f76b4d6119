"""Batches made by processes beside the training loop."""

from __future__ import annotations

import multiprocessing
import resource
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mmcl.runtime.errors import MmclError

FILES_OF_A_PROCESS = 160  # libraries, caches, logs and connections
FILES_OF_A_WORKER = 8  # its pipes
FILES_OF_A_BATCH = 12  # its tensors
A = TypeVar("A")
B = TypeVar("B")


class _Made(Dataset[Any]):
    """What is made of an argument, as torch's loader asks for it; a mistake of the user's travels as a value, since
    the loader would bury its line in a traceback."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, argument: Any) -> Any:
        try:
            return self._make(argument)
        except MmclError as error:
            return error


def by_workers(
    make: Callable[[A], B], arguments: Iterable[A], workers: int, ahead: int, in_worker: Callable[[], None]
) -> Generator[B, None, None]:
    """``make`` of each argument, in their order, by processes that start at once and end with the generator.

    Args:
        make: of tables a pure function. A stream keeps its place in each process, and relies on arguments being dealt
            to the processes in turn.
        arguments: one a call.
        workers: number of processes.
        ahead: results that each process prepares ahead.
        in_worker: called in every process before anything else.

    Raises:
        MmclError: the system cannot fork, or ``make`` raises it.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise MmclError("data.workers: this system cannot fork processes; set it to 0")
    require_open_files(workers, ahead)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # how many is the user's choice
        return _results(iter(_loader(make, arguments, workers, ahead, in_worker)))


def require_open_files(workers: int, ahead: int) -> None:
    """Have this process, and so its children, hold as many open files as the batches under way need.

    A tensor that goes from process to process is an open file in both. A child that has no more of them loses its
    batch, and the loop would wait for it for ever.

    Raises:
        MmclError: the limit cannot be raised that far.
    """
    needed = FILES_OF_A_PROCESS + workers * (FILES_OF_A_WORKER + ahead * FILES_OF_A_BATCH)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise MmclError(
            f"data.workers: {workers} processes that prepare {ahead} batches each take about {needed} open files, and "
            f"the system allows {hard}; lower data.workers or data.prefetch, or raise the limit (ulimit -n {needed})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _loader(make: Any, arguments: Any, workers: int, ahead: int, in_worker: Callable[[], None]) -> DataLoader[Any]:
    return DataLoader(
        _Made(make),
        sampler=arguments,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=ahead,
        multiprocessing_context="fork",  # what the columns map into memory is shared, and nothing need be pickled
        worker_init_fn=lambda number: in_worker(),
        generator=torch.Generator(),  # its own: the global one belongs to dropout
    )


def _results(made: Any) -> Generator[Any, None, None]:
    """The workers end when the last reference to the loader's iterator goes, which is here."""
    try:
        while True:
            try:
                result = next(made)
            except StopIteration:
                return
            except RuntimeError as error:  # torch's word for a process that the system killed
                if "DataLoader worker" not in str(error):
                    raise
                raise MmclError(
                    "a process that prepares batches died, perhaps for lack of memory; lower data.workers, "
                    "data.prefetch or data.shuffle"
                ) from error
            if isinstance(result, MmclError):
                raise result
            yield result
    finally:
        del made  # the traceback of an error keeps this frame, and would keep the workers


def _as_it_is(value: Any) -> Any:
    return value
