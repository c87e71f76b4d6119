"""A full disk, as the libraries report it that write files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_disk_is_oserror(path: Path) -> Iterator[None]:
    """Libraries written in Rust and C++ report what the system refuses, a full disk above all, as exceptions of their
    own, known by their text alone."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = re.search(r"os error (\d+)|[Ee]rrno (\d+)", str(error))
        code = int(found[1] or found[2]) if found else errno.ENOSPC
        if found is None and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(code, os.strerror(code), str(path)) from None
