"""Locks of folders: one writer at a time."""

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
log = logging.getLogger("mmcl")


@contextmanager
def exclusive(folder: Path, what: str) -> Iterator[bool]:
    """Hold the lock of ``folder`` within the block. The kernel releases it if the process ends.

    Args:
        folder: made if it is missing, with its parents, and removed again if it stays empty.
        what: the activity, for the error message of other processes: "encoding into".

    Yields:
        Whether the folder was missing.

    Raises:
        MmclError: another process or thread holds the lock, or ``folder`` is a file.
    """
    folder = folder_to_write(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder, what)
    _held.add(descriptor)
    try:
        yield bool(missing)
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        _held.discard(descriptor)
        os.close(descriptor)
        for path in missing:
            with suppress(OSError):  # it is gone, or something is in it
                path.rmdir()


def entries(folder: Path) -> list[Path]:
    """The contents of a folder, without its lock."""
    return [path for path in folder.iterdir() if path.name != LOCK]


def _lock(folder: Path, what: str) -> int:
    """The descriptor of the lock, which is held until it is closed."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} is {what}".encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode("utf-8", "replace") or "another one is writing to"
            os.close(descriptor)
            raise MmclError(
                f"{folder}: process {holder} this folder; wait until it has ended, or choose another one"
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            log.warning("%s: cannot be locked on this file system; let only one process write there", folder)
            return descriptor
        os.close(descriptor)  # of a file that its holder has removed meanwhile


def _close_in_child() -> None:
    """Otherwise a forked child would keep the lock after its parent has ended."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
