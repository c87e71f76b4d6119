"""Writing rows as tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmcl.data.images import image_suffixes
from mmcl.runtime.files import atomic_file


def write_shards(rows: Iterable[Mapping[str, Any]], folder: str | Path, per_shard: int = 1000) -> list[Path]:
    """Write ``rows`` into ``folder`` as shards ``00000.tar``, ``00001.tar``, … of ``per_shard`` samples each.

    A row maps extensions to content: bytes as they are, the file of a ``Path``, text as UTF-8, anything else as JSON;
    under an extension of images (``jpg``, ``png``, …) text is the path of a file, as in tables. Its key is
    ``__key__``, or its number. Two writings of the same rows give the same bytes.
    """
    folder = Path(folder)
    shards: list[Path] = []
    pending: list[tuple[str, Mapping[str, Any]]] = []

    def flush() -> None:
        path = folder / f"{len(shards):05d}.tar"
        with atomic_file(path) as beside, tarfile.open(beside, "w") as tar:
            for key, row in pending:
                for extension, content in row.items():
                    if extension != "__key__":
                        data = _encoded(extension, content)
                        member = tarfile.TarInfo(f"{key}.{extension}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        shards.append(path)
        pending.clear()

    for number, row in enumerate(rows):
        pending.append((str(row.get("__key__", f"{number:09d}")), row))
        if len(pending) == per_shard:
            flush()
    if pending:
        flush()
    return shards


def _encoded(extension: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, Path) or (isinstance(content, str) and f".{extension.lower()}" in image_suffixes()):
        return Path(content).read_bytes()
    return (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode("utf-8")
