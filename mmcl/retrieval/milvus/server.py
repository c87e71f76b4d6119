"""A Milvus server, and its errors in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcl.runtime.errors import MmclError, first_line

CONNECT_SECONDS = 5.0
"""How long a server that does not answer is waited for."""
CALL_SECONDS = 120.0
"""How long a call may take."""


def is_local(uri: str) -> bool:
    """Whether ``uri`` is a file of Milvus Lite."""
    return "://" not in uri and not uri.startswith("unix:")


def connected(uri: str) -> Any:
    """A client of the server at ``uri``: ``http://HOST:PORT``, or ``FILE.db``, which Milvus Lite opens in this process.

    A server that wants to know who asks gets the environment's ``MILVUS_TOKEN``: ``USER:PASSWORD``, or a key.

    Raises:
        MmclError: no server answers, it refuses, or pymilvus is not installed.
    """
    if is_local(uri) and (not uri.endswith(".db") or not Path(uri).absolute().parent.is_dir()):
        raise MmclError(f"--uri {uri}: neither http://HOST:PORT nor a file ending in .db in a folder that exists")
    if "@" in uri:
        raise MmclError("--uri: leave out user and password, which would be written into the index; set MILVUS_TOKEN")
    try:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else it writes of its own to stderr
        from pymilvus import MilvusClient
    except ImportError:
        raise MmclError("Milvus is reached by pymilvus, which is not installed: pip install 'mmcl[milvus]'") from None
    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what they raise
    with answers(uri):
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=CONNECT_SECONDS)


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Errors of a server within the block, as one line that names it."""
    from grpc import RpcError
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, RpcError) as error:
        reason = str(getattr(error, "message", "")) or first_line(error)
        away = any(word in reason for word in ("Fail connecting", "UNAVAILABLE", "DEADLINE", "timeout", "unavailable"))
        cure = "start it, or name the right one with --uri" if away else "see its log"
        what = "no Milvus server answers there" if away else "Milvus refuses"
        raise MmclError(f"{uri}: {what} ({reason:.200}); {cure}") from error
