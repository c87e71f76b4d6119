"""Files that appear whole or not at all, their checksums, JSON, and the cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcl.runtime.errors import MmclError


def cache_dir(*parts: str) -> Path:
    """A folder under ``$MMCL_CACHE`` (default ``$XDG_CACHE_HOME/mmcl`` or ``~/.cache/mmcl``), made if absent."""
    base = os.environ.get("MMCL_CACHE")
    if base is None:
        base = str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "mmcl")
    folder = Path(base).expanduser().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the name ``path`` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, unless: Path | None = None) -> Iterator[Path]:
    """Yield a new folder beside ``path``; it replaces ``path`` if the block ends without an error, ``unless`` that file
    is there by then: another process was first, and may be reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        while unless is None or not unless.is_file():
            try:
                beside.rename(path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # A full folder cannot be replaced in one call: move the old one away first.
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            shutil.rmtree(old)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        MmclError: it is damaged.
    """
    values = read_any_json(path)
    if not isinstance(values, dict):
        raise MmclError(f"{path}: damaged (not a JSON object); take a fresh copy")
    return values


def read_any_json(path: Path) -> Any:
    """What a JSON file holds, be it an object, a list or a single value.

    Raises:
        MmclError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MmclError(f"{path}: damaged ({error}); take a fresh copy") from None


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` for people to read as well."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
