"""Which files hold the vectors at a path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmcl.encoding.vector_files.file_vectors import FileVectors, VectorFile
from mmcl.encoding.vector_files.npy import IDS, NpyFile
from mmcl.encoding.vector_files.parquet import ParquetVectors
from mmcl.runtime.errors import MmclError

KINDS = "a folder of `mmcl encode`, .npy or .parquet files, or clip-retrieval's img_emb/ or text_emb/"
"""What vectors are opened from."""
CLIP_RETRIEVAL = ("img_emb", "text_emb")


def open_files(path: Path, column: str | None = None) -> FileVectors:
    """The vectors that another program has written.

    Args:
        path: a ``.npy`` or ``.parquet`` file, a folder of them, or one of clip-retrieval.
        column: of Parquet files, the column of the vectors.

    Raises:
        MmclError: there is no such path, it holds no vectors, several kinds of them, or damaged ones.
    """
    if not path.exists():
        raise MmclError(f"{path}: no such file or folder; vectors are {KINDS}")
    files = _in_folder(path, column) if path.is_dir() else [_file(path, column)]
    if column is not None and not all(isinstance(file, ParquetVectors) for file in files):
        raise MmclError(f"{path}: --column {column}: only Parquet files have columns; leave it out")
    return FileVectors(path, files)


def _file(path: Path, column: str | None) -> VectorFile:
    if path.suffix == ".parquet":
        return ParquetVectors(path, column)
    if path.suffix == ".npy":
        beside = (path.with_name(path.name.removesuffix(".npy") + ending) for ending in IDS)
        return NpyFile(path, next((ids for ids in beside if ids.exists()), None))
    raise MmclError(f"{path}: holds no vectors that can be read; they are {KINDS}")


def _in_folder(path: Path, column: str | None) -> Sequence[VectorFile]:
    kinds = [name for name in CLIP_RETRIEVAL if (path / name).is_dir()]
    if len(kinds) > 1:
        raise MmclError(f"{path}: holds vectors of images and of texts; name {path / kinds[0]} or {path / kinds[1]}")
    if kinds:
        path = path / kinds[0]
    arrays = [file for file in _sorted(path, ".npy") if not file.name.endswith(".ids.npy")]
    if path.name in CLIP_RETRIEVAL and arrays:
        return _of_clip_retrieval(path, arrays)
    if arrays:
        return [_file(file, column) for file in arrays]
    if tables := _sorted(path, ".parquet"):
        return [_file(file, column) for file in tables]
    raise MmclError(f"{path}: holds no vectors; they are {KINDS}")


def _of_clip_retrieval(folder: Path, arrays: Sequence[Path]) -> list[VectorFile]:
    """``img_emb_0.npy`` beside ``../metadata/metadata_0.parquet``."""
    metadata = folder.parent / "metadata"
    files: list[VectorFile] = []
    for path in arrays:
        columns = metadata / f"metadata{path.stem.removeprefix(folder.name)}.parquet"
        if metadata.is_dir() and not columns.exists():
            raise MmclError(f"{columns}: missing, the ids of {path.name} should be there")
        files.append(NpyFile(path, columns if columns.exists() else None))
    return files


def _sorted(folder: Path, ending: str) -> list[Path]:
    """The files of a folder by their names, numbers in these as numbers: ``part-2`` before ``part-10``."""
    files = [path for path in folder.iterdir() if path.suffix == ending and not path.name.startswith(".")]
    return sorted(files, key=lambda path: [(part.isdigit(), part.zfill(20)) for part in re.split(r"(\d+)", path.name)])
