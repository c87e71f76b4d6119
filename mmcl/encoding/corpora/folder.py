"""Opening a folder of vectors to write to it: a new one, or one that holds vectors of the same origin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from mmcl.encoding.corpora.manifest import (
    MANIFEST,
    Dtype,
    check_shard,
    read_manifest,
    with_described,
    write_manifest,
)
from mmcl.encoding.corpora.stored import near
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file
from mmcl.runtime.lock import entries

REJECTS = "rejects.jsonl"
"""A line for everything in the source that has no vector: row, id, reason."""


def nothing_skipped() -> dict[str, Any]:
    """The entry of a manifest without rejected rows."""
    return {"count": 0, "rows": [], "ranges": []}


def new_manifest(
    folder: Path,
    *,
    dim: int,
    model: str | None,
    dtype: Dtype,
    source: dict[str, Any] | None,
    encoder: dict[str, str] | None,
    shard_rows: int | None = None,
) -> dict[str, Any]:
    """The manifest of a folder without vectors.

    Args:
        folder: where it will be.
        dim: components of a vector.
        model: name or folder of the encoder.
        dtype: of the vectors on disk.
        source: what they come from.
        encoder: fingerprint of the encoder.
        shard_rows: rows of the source that each shard owns, if every shard owns a range.

    Raises:
        MmclError: no such dtype.
    """
    if dtype not in get_args(Dtype):
        raise MmclError(f"vectors are stored as float32, float16 or int8, not '{dtype}'")
    return {
        "model": model,
        "near": near(folder, model),
        "encoder": encoder,
        "dim": dim,
        "dtype": dtype,
        "source": source or {},
        "count": 0,
        "complete": False,
        "shard_rows": shard_rows,
        "truncated": None,
        "skipped": nothing_skipped(),
        "shards": [],
    }


def open_folder(folder: Path, wanted: dict[str, Any], resume: bool = True) -> tuple[dict[str, Any], bool]:
    """The manifest of a folder that is new, empty, or holds vectors like those wanted; while the caller holds its lock.

    Args:
        folder: made if it is missing.
        wanted: as :func:`new_manifest` makes it; it is written if the folder has none.
        resume: accept a folder that has one.

    Returns:
        The manifest, and whether the encoder's fingerprint is known in both, and so the same.

    Raises:
        MmclError: the folder holds something else, or vectors of another model, dimension, dtype or source.
    """
    if not (folder / MANIFEST).exists():
        if folder.is_file() or (folder.is_dir() and not all(map(is_leftover, entries(folder)))):
            raise MmclError(f"{folder}: exists and holds no vectors; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        remove_unlisted(folder, wanted)
        write_manifest(folder, wanted)
        return wanted, True
    if not resume:
        raise MmclError(f"{folder}: holds vectors already; delete it or choose another --out")
    found = read_manifest(folder, "delete it or choose another --out")
    for key, now, then in _differences(wanted, found):
        raise MmclError(
            f"{folder}: holds vectors of another {key} ({then!r}, now {now!r}); delete it or choose another --out"
        )
    for shard in with_described(folder, found)["shards"]:
        check_shard(folder, shard)
    if not found["shards"] and found["skipped"]["count"]:  # nothing could be encoded: all is tried again
        found |= {"complete": False, "skipped": nothing_skipped()}
        write_manifest(folder, found)
    same = found["encoder"] is not None and wanted["encoder"] is not None
    if same:  # a model that has moved is found where it is now
        moved = found["model"] != wanted["model"]
        found |= {key: wanted[key] for key in ("model", "near", "encoder")}
        if moved:
            write_manifest(folder, found)
    return found, same


def remove_unlisted(folder: Path, manifest: dict[str, Any]) -> None:
    """Delete what interrupted writers left: files of shards that the manifest does not list. For folders that nobody
    else is writing to."""
    listed = {name for shard in manifest["shards"] for name in shard["files"]}
    for path in folder.iterdir():
        if path.name not in listed and path.name != REJECTS and is_leftover(path):
            path.unlink()


def read_rejects(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of the rejects file of a folder of vectors."""
    with (folder / REJECTS).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write_rejects(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Replace the rejects file of a folder of vectors: a line for each entry; no file without one."""
    entries = iter(entries)
    first = next(entries, None)
    if first is None:
        (folder / REJECTS).unlink(missing_ok=True)
        return
    with atomic_file(folder / REJECTS) as beside, beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for entry in (first, *entries):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def is_leftover(path: Path) -> bool:
    """Whether a file in a folder of vectors may be deleted if the manifest does not list it."""
    hidden = path.name.startswith((".shard-", f".{MANIFEST}.", f".{REJECTS}."))
    shard = path.name.startswith("shard-") and path.name.endswith((".npy", ".ids.parquet", ".json"))
    return shard or path.name == REJECTS or (hidden and path.name.endswith((".part", CLAIM)))


CLAIM = ".claim"
"""How the hidden file ends that a process locks while it encodes a shard."""


def _differences(now: dict[str, Any], then: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What tells the vectors in a folder from those to be written: key, now, then."""
    known = now["encoder"] is not None and then["encoder"] is not None
    if known and now["encoder"]["weights"] != then["encoder"]["weights"]:
        what = "with other weights" if now["model"] == then["model"] else "of other weights"
        yield "model", f"{now['model']} {what}", then["model"]
    for key in ("model", "dim", "dtype"):
        if now[key] != then[key] and not (known and key == "model"):
            yield key, now[key], then[key]
    old = then["source"]
    name, former = now["source"].get("name"), old.get("name")
    fingerprints = now["source"].get("fingerprint"), old.get("fingerprint")
    if name and former and fingerprints[0] != fingerprints[1]:
        yield ("source", name, former) if name != former else (f"state of {name}", *fingerprints)
    for key in sorted((now["source"].keys() | old.keys()) - {"name"}):
        if now["source"].get(key) != old.get(key):
            yield f"source: {key}", now["source"].get(key), old.get(key)
