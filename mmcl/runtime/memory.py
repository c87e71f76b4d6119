"""Memory of the CPU."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

MAPPED, TRIMMED = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
LARGE = 1 << 30
ADAPTED = 32 << 20  # how far glibc raises the threshold of mapping by itself; that of trimming is twice it


@contextmanager
def reused_memory() -> Iterator[None]:
    """Within the block, memory that this process frees is kept for what it allocates next.

    glibc gives blocks of 32 MiB and more back to the system when they are freed. A training step allocates the same
    large activations as the step before, and the system would clear each of their pages anew, which takes a fifth to
    a third of the time of a small convolutional network. With another C library nothing changes.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(MAPPED, LARGE)
    library.mallopt(TRIMMED, -1)
    try:
        yield
    finally:
        library.mallopt(MAPPED, ADAPTED)
        library.mallopt(TRIMMED, 2 * ADAPTED)
        library.malloc_trim(0)


_MAPS = Path("/proc/self/maps")


def drop_mapped_pages(files: Collection[str]) -> None:
    """Take the pages of memory-mapped files out of this process's memory; read again, they come back as they were.

    The system keeps what has been read of a file mapped until it runs short, and counts it as the process's. Other than
    on Linux nothing changes.

    Args:
        files: their absolute paths. A mapping that may be written to is left alone: its changes would be lost.
    """
    if not files or not _MAPS.exists():
        return
    library = ctypes.CDLL(None)
    for line in _MAPS.read_text(errors="surrogateescape").splitlines():
        if " r--" in line and line[line.find("/") :] in files:
            start, end = (int(address, 16) for address in line.split(maxsplit=1)[0].split("-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
