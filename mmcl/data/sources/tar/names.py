"""What tar shards are called: whether one is a file here or a command, and its name in messages."""

from __future__ import annotations

import re

from mmcl.data.identity import stable_hash

_TAR_IN_COMMAND = re.compile(r"[^\s/'\"=]+\.(?:tar\.gz|tar|tgz)\b", re.IGNORECASE)
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # two letters at least: C: is a drive


def is_local(shard: str) -> bool:
    """Whether the shard is a file here, rather than a URL or a command."""
    return _URL.match(shard) is None


def is_command(shard: str) -> bool:
    """Whether the shard is what a shell command writes, rather than a file or a URL."""
    return shard[:5].lower() == "pipe:"


def shard_name(shard: str) -> str:
    """How messages and names of samples call a shard: the name of its file, or of the last tar in a command."""
    if not is_command(shard):
        return re.split(r"[?#]", shard)[0].rstrip("/").split("/")[-1]
    tars = _TAR_IN_COMMAND.findall(shard)
    return tars[-1] if tars else f"pipe-{stable_hash(shard) % 2**32:08x}"
