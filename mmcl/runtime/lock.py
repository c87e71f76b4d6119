"""Locks of folders, one writer at a time, and of single pieces of work."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import folder_to_write

LOCK = ".lock"
"""The file in a folder that its writer locks, and removes in the end."""

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[int] = set()
_unlocked: set[Path] = set()  # folders of which it has been said
log = logging.getLogger("mmcl")


@contextmanager
def exclusive(folder: Path, what: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of ``folder`` within the block. The kernel releases it if the process ends.

    Args:
        folder: made if it is missing, with its parents, and removed again if it stays empty.
        what: the activity, for the error message of other processes: "encoding into".
        wait: until whoever holds it has released it, rather than raise.

    Yields:
        Whether the folder was missing.

    Raises:
        MmclError: another process or thread holds the lock, or ``folder`` is a file.
    """
    folder = folder_to_write(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder / LOCK, what, wait=wait)
    if descriptor is None:
        raise MmclError(
            f"{folder}: process {_holder(folder / LOCK)} this folder; wait until it has ended, or choose another one"
        )
    try:
        yield bool(missing)
    finally:
        _unlock(folder / LOCK, descriptor)
        for path in missing:
            with suppress(OSError):  # it is gone, or something is in it
                path.rmdir()


class Claim:
    """A file that this process has locked, to say that it does the work that the file stands for. Made by
    :func:`claim`; the kernel releases it if the process ends, in whatever way."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Remove the file and its lock."""
        _unlock(self._path, self._descriptor)


def claim(path: Path, what: str) -> Claim | None:
    """Lock the file ``path``, which is made, or return None at once if another process or thread holds it.

    Where the file system has no locks, everybody gets it, and a warning says so once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(path, what)
    return None if descriptor is None else Claim(path, descriptor)


def entries(folder: Path) -> list[Path]:
    """The contents of a folder, without its lock."""
    return [path for path in folder.iterdir() if path.name != LOCK]


def _lock(path: Path, what: str, *, wait: bool = False) -> int | None:
    """The descriptor of the lock, which is held until it is closed; None if it is another's."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # whoever held the lock before has removed the folder, too
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} is {what}".encode())
                _held.add(descriptor)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException as error:
            if not isinstance(error, OSError) or error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            if path.parent not in _unlocked:
                _unlocked.add(path.parent)
                log.warning("%s: cannot be locked on this file system; let only one process write there", path.parent)
            return descriptor
        os.close(descriptor)  # of a file that its holder has removed meanwhile


def _unlock(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        path.unlink()
    _held.discard(descriptor)
    os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:100] or "another one is writing to"
    except OSError:
        return "another one is writing to"


def _close_in_child() -> None:
    """Otherwise a forked child would keep the lock after its parent has ended."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
