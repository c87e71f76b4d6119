"""A full disk, as libraries that write files report it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_disk_is_oserror(path: Path) -> Iterator[None]:
    """Raise ``OSError`` where libraries in Rust and C++ report an error of the system, such as a full disk, as an
    exception of their own, whose text alone names the error."""
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
