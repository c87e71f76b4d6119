"""Encoding in several processes, each with a copy of the model on a device of its own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeAlias

import torch

from mmcl.encoding.inputs import Options
from mmcl.encoding.text_pipeline import Embedded
from mmcl.formats.folder import save
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

Embeds: TypeAlias = Callable[[list[Any]], Embedded]
Opener: TypeAlias = Callable[[str, str, str, Options], Embeds]
"""A function of a module: what embeds inputs by a tower (name) of the model in a folder, on a device, as is wanted."""
_AHEAD = 4
"""Chunks a worker may have finished while an earlier one is still being computed."""
_SECONDS_TO_STOP = 5


def embed_in_workers(
    towers: Towers,
    name: str,
    opener: Opener,
    chunks: Iterable[Sequence[Any]],
    devices: Sequence[torch.device],
    options: Options,
) -> Iterator[Embedded]:
    """Embed chunk after chunk, in the order of the chunks.

    Every worker gets the next chunk once it has given back its last, so that a slow one does not hold up the others.
    The model goes to them as a folder: nothing is shared but what is sent.

    Args:
        towers: the model.
        name: of the tower.
        opener: opens it in a worker.
        chunks: of inputs.
        devices: of the workers, one each.
        options: what is wanted of the inputs.

    Raises:
        MmclError: a worker ended (was killed, say, for want of memory), or an input cannot be encoded.
        Exception: what ``chunks`` raises, after everything before it.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmcl-workers-"))) / "model"
        path = towers.path
        try:
            save(towers, folder)
        finally:
            towers.path = path
        threads = max(1, torch.get_num_threads() // max(1, sum(device.type == "cpu" for device in devices)))
        workers = []
        for device in devices:
            opened = partial(opener, str(folder), str(device), name, options)
            workers.append(_Worker(opened, device, threads))
        for worker in workers:
            stack.callback(worker.stop)
        yield from _in_order(workers, chunks)


def _in_order(workers: list[_Worker], chunks: Iterable[Sequence[Any]]) -> Iterator[Embedded]:
    waiting, done = enumerate(chunks), dict[int, Embedded]()
    turn = given = 0
    idle, busy = list(workers), dict[Any, tuple[_Worker, int]]()
    ended: Exception | None = None
    while True:
        while ended is None and idle and given < turn + _AHEAD * len(workers):
            try:
                number, chunk = next(waiting)
            except Exception as error:  # StopIteration, or what the chunks' own source raised
                ended = error
                break
            worker = idle.pop()
            worker.give(chunk)
            busy[worker.connection] = (worker, number)
            given += 1
        if not busy:
            if isinstance(ended, StopIteration):
                return
            assert ended is not None, "with nothing under way, it is at its end"
            raise ended
        for connection in wait(list(busy)):
            worker, number = busy.pop(connection)
            done[number] = worker.take()
            idle.append(worker)
        while turn in done:
            yield done.pop(turn)
            turn += 1


class _Worker:
    """A process, as the one that started it sees it."""

    def __init__(self, opened: Callable[[], Embeds], device: torch.device, threads: int) -> None:
        context = get_context("spawn")  # a fork would inherit torch's threads, locked as they happen to be
        self.connection, theirs = context.Pipe()
        self._device = device
        self._process = context.Process(target=_work, args=(theirs, opened, threads), daemon=True)
        self._process.start()
        theirs.close()  # held by the worker alone, its end is seen here when the worker ends

    def give(self, chunk: Sequence[Any]) -> None:
        """Send a chunk; the worker has given back the last one, so it is reading, and both never write at once."""
        try:
            self.connection.send(list(chunk))
        except OSError:
            raise self._ended() from None

    def take(self) -> Embedded:
        """What it made of the chunk."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, str):
            raise MmclError(answer)
        return Embedded(*answer)

    def _ended(self) -> MmclError:
        self._process.join(_SECONDS_TO_STOP)
        return MmclError(
            f"encode: the worker process on {self._device} ended, exit code {self._process.exitcode} (-9 is often a "
            "lack of memory); use fewer devices, and call encode(devices=) under if __name__ == '__main__':"
        )

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_STOP)


def _work(
    connection: Connection, opened: Callable[[], Embeds], threads: int
) -> None:  # pragma: no cover  (in another process)
    logging.getLogger("mmcl").setLevel(logging.ERROR)  # what was cut is counted, and said once, where it was asked for
    torch.set_num_threads(threads)
    embeds: Embeds | None = None
    while True:
        try:
            chunk = connection.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            embeds = embeds or opened()
            answer = tuple(embeds(chunk))
        except MmclError as error:
            answer = str(error)
        connection.send(answer)
