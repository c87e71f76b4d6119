"""The manifest of a folder of vectors: what they are, and which shards there are.

While the folder is being written by several processes, each shard has a description of its own beside its files,
``shard-00003.json``, which is written last: a shard without one does not exist. Once all are there, the manifest lists
them and the descriptions go; then it is the single truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints

from mmcl.encoding.corpora.stored import (
    FileRecord,
    Fingerprint,
    Stored,
    check_file,
    read_description,
    validated,
    write_description,
)
from mmcl.runtime.errors import MmclError

FORMAT, SHARD_FORMAT, VERSION = "mmcl vectors", "mmcl vectors shard", 2
MANIFEST = "manifest.json"
LISTED = 1_000
"""Rejected rows that a manifest lists; all are in the rejects file."""
ENCODE = "make it with: mmcl encode MODEL INPUT --out DIR"
AGAIN = "delete the folder and encode again"

Dtype = Literal["float32", "float16", "int8"]
_Count = Annotated[int, Field(ge=0)]


class _Shard(Stored):
    name: Annotated[str, StringConstraints(pattern=r"^shard-\d+$")]
    rows: _Count
    start: _Count | None = None
    rows_done: _Count
    files: dict[str, FileRecord]


class _SkippedRow(Stored):
    row: int
    id: int | str
    reason: str


class _Skipped(Stored):
    count: _Count
    rows: list[_SkippedRow]
    ranges: list[Annotated[list[_Count], Field(min_length=2, max_length=2)]] | None = None


class _Described(Stored):
    shard: _Shard
    skipped: list[_SkippedRow]
    truncated: _Count | None


class _Manifest(Stored):
    model: str | None
    near: str | None = None
    encoder: Fingerprint | None = None
    dim: Annotated[int, Field(ge=1, le=2**24)]
    dtype: Dtype
    source: dict[str, Any]
    count: int
    complete: bool
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    truncated: _Count | None = None
    skipped: _Skipped
    shards: list[_Shard]


def read_manifest(folder: Path, made_by: str) -> dict[str, Any]:
    """The entries of a folder's manifest, all there and each of its kind; the files themselves are not looked at, nor
    are the shards that have descriptions of their own.

    Raises:
        MmclError: there is none, it is damaged, or a newer mmcl wrote it.
    """
    path = folder / MANIFEST
    manifest = validated(_Manifest, read_description(path, FORMAT, VERSION, made_by), path, AGAIN)
    width = manifest.dim * np.dtype(manifest.dtype).itemsize
    for shard in manifest.shards:
        _check_files(path, shard, manifest.dtype, width)
    skipped = manifest.skipped
    if sum(stop - start for start, stop in skipped.ranges or ()) > skipped.count:
        raise MmclError(f"{path}: damaged, 'skipped.ranges' are more rows than 'skipped.count'; {AGAIN}")
    if manifest.count != (rows := sum(shard.rows for shard in manifest.shards)):
        raise MmclError(f"{path}: damaged, 'count' is {manifest.count:,}, its shards have {rows:,}; {AGAIN}")
    return manifest.model_dump()


def kinds(dtype: str) -> tuple[str, ...]:
    """How the names of a shard's files end."""
    return ("npy", "ids.parquet", "scales.npy") if dtype == "int8" else ("npy", "ids.parquet")


def _check_files(path: Path, shard: _Shard, dtype: str, width: int) -> None:
    for kind in kinds(dtype):
        if f"{shard.name}.{kind}" not in shard.files:
            raise MmclError(f"{path}: damaged, '{shard.name}.{kind}' is not among the files of its shard; {AGAIN}")
    if shard.rows * width > shard.files[f"{shard.name}.npy"].bytes:
        raise MmclError(f"{path}: damaged, '{shard.name}.npy' is too small for its rows; {AGAIN}")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest of a folder."""
    write_description(folder / MANIFEST, FORMAT, VERSION, manifest)


def shard_name(number: int) -> str:
    """What the files of a shard begin with."""
    return f"shard-{number:05}"


def shard_number(name: str) -> int:
    """The number of the shard of this name."""
    return int(name.removeprefix("shard-"))


def described(folder: Path) -> list[int]:
    """The numbers of the shards that have descriptions of their own, in order."""
    names = (path.stem for path in folder.glob("shard-*.json"))
    return sorted(shard_number(name) for name in names if name.removeprefix("shard-").isdigit())


def write_shard_description(
    folder: Path, shard: dict[str, Any], skipped: Iterable[dict[str, Any]], truncated: int | None
) -> None:
    """Say that a shard is complete.

    Args:
        folder: of the vectors.
        shard: as the manifest will list it; without rows, it has no files.
        skipped: row, id and reason of everything in its rows that has no vector.
        truncated: how many of its texts were cut, if that is known.
    """
    content = {"shard": shard, "skipped": list(skipped), "truncated": truncated}
    write_description(folder / f"{shard['name']}.json", SHARD_FORMAT, VERSION, content)


def read_shard_description(folder: Path, number: int, dtype: str, dim: int) -> dict[str, Any]:
    """``shard``, ``skipped`` and ``truncated``, as they were written. Raises ``MmclError`` if they are damaged."""
    path = folder / f"{shard_name(number)}.json"
    found = validated(_Described, read_description(path, SHARD_FORMAT, VERSION, AGAIN), path, AGAIN)
    if found.shard.rows:
        _check_files(path, found.shard, dtype, dim * np.dtype(dtype).itemsize)
    return found.model_dump()


def with_described(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that also lists the shards which have descriptions of their own; those without rows are left out."""
    found = [read_shard_description(folder, number, manifest["dtype"], manifest["dim"]) for number in described(folder)]
    shards = [*manifest["shards"], *(one["shard"] for one in found if one["shard"]["rows"])]
    rejects = [entry for one in found for entry in one["skipped"]]
    before = manifest["skipped"]
    cut = [one["truncated"] for one in found] + ([manifest["truncated"]] if manifest["shards"] else [])
    return manifest | {
        "shards": shards,
        "count": sum(shard["rows"] for shard in shards),
        "truncated": total(cut),
        "skipped": {
            "count": before["count"] + len(rejects),
            "rows": [*before["rows"], *rejects][:LISTED],
            "ranges": as_ranges([*skipped_rows(before), *(entry["row"] for entry in rejects)]),
        },
    }


def total(counts: Iterable[int | None]) -> int | None:
    """The sum of counts; None if one of them is not known."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def skipped_rows(skipped: dict[str, Any]) -> list[int]:
    """The rows of which something was skipped, as far as a manifest says."""
    ranges = skipped["ranges"] or [(entry["row"], entry["row"] + 1) for entry in skipped["rows"]]
    return [row for start, stop in ranges for row in range(start, stop)]


def as_ranges(rows: Iterable[int]) -> list[list[int]]:
    """Rows as runs from a first to behind a last one."""
    numbers = np.unique(np.fromiter(rows, dtype=np.int64))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []
    return [[int(run[0]), int(run[-1]) + 1] for run in runs]


def check_shard(folder: Path, shard: dict[str, Any]) -> None:
    """Compare the sizes of a shard's files with the manifest. Raises ``MmclError`` for one that is not as recorded."""
    for name, record in shard["files"].items():
        check_file(folder / name, record, checksum=False, cure=AGAIN)


def sound_file(folder: Path, shard: dict[str, Any], kind: str) -> Path:
    """A shard's file of one of the :func:`kinds`, every byte of which is as written. Raises ``MmclError`` if not."""
    name = f"{shard['name']}.{kind}"
    check_file(folder / name, shard["files"][name], checksum=True, cure=AGAIN)
    return folder / name
