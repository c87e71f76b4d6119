"""The manifest of a folder of vectors: what they are, and which shards there are.

It is the single truth: replaced, complete, after every shard; a shard that it does not list does not exist.
"""

from __future__ import annotations

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

FORMAT, VERSION = "mmcl vectors", 1
MANIFEST = "manifest.json"
ENCODE = "make it with: mmcl encode MODEL INPUT --out DIR"
AGAIN = "delete the folder and encode again"

Dtype = Literal["float32", "float16"]
_Count = Annotated[int, Field(ge=0)]


class _Shard(Stored):
    name: Annotated[str, StringConstraints(pattern=r"^shard-\d+$")]
    rows: _Count
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


class _Manifest(Stored):
    model: str | None
    near: str | None = None
    encoder: Fingerprint | None = None
    dim: Annotated[int, Field(ge=1, le=2**24)]
    dtype: Dtype
    source: dict[str, Any]
    count: int
    complete: bool
    skipped: _Skipped
    shards: list[_Shard]


def read_manifest(folder: Path, made_by: str) -> dict[str, Any]:
    """The entries of a folder's manifest, all there and each of its kind; the files themselves are not looked at.

    Raises:
        MmclError: there is none, it is damaged, or a newer mmcl wrote it.
    """
    path = folder / MANIFEST
    manifest = validated(_Manifest, read_description(path, FORMAT, VERSION, made_by), path, AGAIN)
    width = manifest.dim * np.dtype(manifest.dtype).itemsize
    for shard in manifest.shards:
        for name in (f"{shard.name}.npy", f"{shard.name}.ids.parquet"):
            if name not in shard.files:
                raise MmclError(f"{path}: damaged, '{name}' is not among the files of its shard; {AGAIN}")
        if shard.rows * width > shard.files[f"{shard.name}.npy"].bytes:
            raise MmclError(f"{path}: damaged, '{shard.name}.npy' is too small for its rows; {AGAIN}")
    skipped = manifest.skipped
    if sum(stop - start for start, stop in skipped.ranges or ()) > skipped.count:
        raise MmclError(f"{path}: damaged, 'skipped.ranges' are more rows than 'skipped.count'; {AGAIN}")
    if manifest.count != (rows := sum(shard.rows for shard in manifest.shards)):
        raise MmclError(f"{path}: damaged, 'count' is {manifest.count:,}, its shards have {rows:,}; {AGAIN}")
    return manifest.model_dump()


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest of a folder."""
    write_description(folder / MANIFEST, FORMAT, VERSION, manifest)


def check_shard(folder: Path, shard: dict[str, Any]) -> None:
    """Compare the sizes of a shard's files with the manifest. Raises ``MmclError`` for one that is not as recorded."""
    for name in (f"{shard['name']}.npy", f"{shard['name']}.ids.parquet"):
        check_file(folder / name, shard["files"][name], checksum=False, cure=AGAIN)


def sound_file(folder: Path, shard: dict[str, Any], kind: str) -> Path:
    """A shard's ``npy`` or ``ids.parquet``, every byte of which is as it was written. Raises ``MmclError`` if not."""
    name = f"{shard['name']}.{kind}"
    check_file(folder / name, shard["files"][name], checksum=True, cure=AGAIN)
    return folder / name
