"""Which tar shards a source names: braces, folders, URLs and commands."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from urllib.parse import urlsplit

from mmcl.data.rows import path_of_url
from mmcl.data.sources.files import format_of
from mmcl.data.sources.image_folders import is_junk
from mmcl.data.sources.open import is_registered
from mmcl.data.sources.tar.names import is_command, is_local
from mmcl.data.sources.tar.remote import reading_command
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, existing_file, existing_folder

log = logging.getLogger("mmcl")

_TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)$", re.IGNORECASE)


def is_shards(source: str | Path) -> bool:
    """Whether ``source`` names tar shards rather than a table, images or a data set on the hub."""
    text = str(source)
    if is_registered(text):
        return False
    if existing_file(text) is not None:
        return _TAR.search(text) is not None
    if (folder := existing_folder(text)) is not None:
        return bool(_in_folder(folder)) and not any(folder.glob("metadata.*"))
    if text.lower().startswith("file:") and not _TAR.search(text):
        return False
    return "://" in text or any(_TAR.search(part) or is_command(part) for part in text.split("::"))


def list_shards(source: str | Path) -> list[str]:
    """The shards that ``source`` names: paths and URLs, in its order.

    ``source`` is a path, a URL, or ``pipe:COMMAND`` whose output is a tar; with braces for numbers
    (``train-{0000..0019}.tar``) and ``::`` between several; or a folder with ``.tar`` files.

    Raises:
        MmclError: a local shard is missing, the braces do not match, nothing reads such a URL, it names a table,
            or there is a command and :func:`allow_pipes` was not called.
    """
    text = str(source)
    folder, file = existing_folder(text), existing_file(text)
    if file is not None:  # whatever braces are in its name
        return [str(file)]
    shards = _expanded(text) if folder is None else _in_folder(folder)
    _check_commands([shard for shard in shards if is_command(shard)])
    for shard in shards:
        if not is_local(shard) and not is_command(shard):
            if format_of(Path(urlsplit(shard).path)):
                raise MmclError(f"{shard}: only tar shards are read from a URL; download this file first")
            reading_command(shard)
    missing = [shard for shard in shards if is_local(shard) and not Path(shard).is_file()]
    if missing:
        raise MmclError(
            f"{text}: there is no shard {missing[0]} ({len(missing)} of {len(shards)} are missing); "
            "mend the path or its braces"
        )
    return shards


_pipes_allowed = False
_announced: set[str] = set()


def allow_pipes() -> None:
    """Let :func:`list_shards` take ``pipe:COMMAND`` in this process.

    A command does whatever its author likes, and a config is passed around. Only who starts the process may say this.
    """
    global _pipes_allowed
    _pipes_allowed = True


def _check_commands(commands: Sequence[str]) -> None:
    if not commands:
        return
    first = shorten(commands[0], 200, placeholder=" …")
    if not _pipes_allowed:
        raise MmclError(
            f"{first}: this runs a command in a shell, with all your rights; if you trust whoever wrote it, say "
            "so with --allow-pipe (in Python: mmcl.data.sources.tar.shards.allow_pipes())"
        )
    if first not in _announced:
        _announced.add(first)
        log.warning("--allow-pipe: shell commands are run to read shards (%d): %s", len(commands), first)


def _expanded(text: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    try:
        return [_local_path(shard) if is_local(shard) else shard for shard in expand_urls(text)]
    except (ValueError, AssertionError) as error:  # unbalanced braces; ${NAME} without WDS_NAME
        raise MmclError(f"{text}: {error}") from None


def _in_folder(folder: Path) -> list[str]:
    """The tar files of a folder; of one that has other files, only if some are not compressed: a backup is no shard."""
    names = [path.name for path in sorted(folder.iterdir()) if not is_junk(path.name) and not path.is_dir()]
    tars = [name for name in names if _TAR.search(name)]
    shards = len(tars) == len(names) or any(name.lower().endswith(".tar") for name in tars)
    return [str(folder / name) for name in tars] if shards else []


def _local_path(shard: str) -> str:
    return str(as_path(path_of_url(shard) if shard.lower().startswith("file:") else shard))
