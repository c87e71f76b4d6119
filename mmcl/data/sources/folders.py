"""Folders of tables, of splits and of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from mmcl.data.images import image_suffixes
from mmcl.data.rows import Rows
from mmcl.data.sources.captions import open_captions
from mmcl.data.sources.files import FORMATS, fingerprint, format_of, stem_of
from mmcl.data.sources.hub import no_split, open_saved
from mmcl.data.sources.image_folders import is_img2dataset, is_junk, open_images
from mmcl.data.sources.tables import Loaded, load_tables, open_tables, rows_of
from mmcl.runtime.errors import MmclError

_SHARD_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+)?$")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
_ABOUT = {"dataset_info", "dataset_infos", "readme", "license"}  # of a data set, no rows of it


class _Options(TypedDict):
    """How tables are read, and where paths in them start from."""

    separator: str | None
    root: Path | None


def open_folder(
    folder: Path, split: str | None, *, name: str, separator: str | None = None, root: Path | None = None
) -> Rows:
    """The rows of a folder: what its files say it is, tables before images."""
    options = _Options(separator=separator, root=root)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return open_saved(folder, split, name=name, root=root)
    if is_img2dataset(folder):
        if split is not None:
            no_split(name, split, [])
        return _images(folder, name)
    tables, texts = _tables(folder)
    metadata = [file for file in tables if stem_of(file) == "metadata"]
    if metadata:
        if split is not None:
            no_split(name, split, [])
        return _open_captioned(metadata[0], name, options)
    if split is not None and (rows := _listed(folder, split, name, root)) is not None:
        return rows
    if split is not None and _has_folder(folder, split) and not _of_split(tables, split):
        return open_folder(folder / split, None, name=f"{name} ({split})", **options)
    if tables:
        return _open_split(tables, split, name, options)
    if split is None and (rows := _listed(folder, None, name, root)) is not None:
        return rows
    inside = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and not is_junk(entry.name)]
    parts = [] if _has_images(folder) else [entry for entry in inside if _named_as_split(entry)]
    if len(parts) > 1 or (parts and parts == inside):
        if split is not None:
            no_split(name, split, inside)
        if len(parts) > 1:
            raise MmclError(f"{name}: it has the splits {', '.join(parts)}; name one as split")
        return open_folder(folder / parts[0], None, name=f"{name} ({parts[0]})", **options)
    if split is None and (rows := open_images(folder, name=name)) is not None:
        return rows
    if texts:
        return _open_split(texts, split, name, options)
    if split is not None:
        no_split(name, split, inside)
    raise MmclError(f"{name}: the folder holds neither tables ({', '.join(FORMATS)}) nor images")


def _listed(folder: Path, split: str | None, name: str, root: Path | None) -> Rows | None:
    """The captions that a data set's folder has where the data set's authors put them, of COCO a file a split."""
    if split is not None:
        files, name = [folder / "annotations" / f"captions_{split}.json"], f"{name} ({split})"
    else:
        tokens = (file for file in sorted(folder.iterdir()) if re.search(r"\.token(\.txt)?$", file.name))
        files = [folder / "captions.txt", *(file for file in tokens if "lemma" not in file.name)]
    files = [file for file in files if file.is_file() and not is_junk(file.name)]
    return next((rows for file in files if (rows := open_captions(file, None, name=name, root=root)) is not None), None)


def _images(folder: Path, name: str) -> Rows:
    rows = open_images(folder, name=name, labelled=False)
    if rows is None:
        raise MmclError(f"{name}: img2dataset has left no images there")
    return rows


def _tables(folder: Path) -> tuple[list[Path], list[Path]]:
    """The tables of a folder, and its text files apart: these may be notes or captions. Neither what is hidden, nor
    what img2dataset writes about an image beside it."""
    files = [entry for entry in sorted(folder.iterdir()) if not is_junk(entry.name) and entry.is_file()]
    images = {file.stem for file in files if file.suffix.lower() in image_suffixes()}
    beside = {file.stem for file in files if file.suffix.lower() == ".json"}
    files = [file for file in files if stem_of(file).lower() not in _ABOUT and file.stem not in images]
    if images & beside:  # then those of images that were lost are no tables either
        files = [file for file in files if file.suffix.lower() != ".json"]
    tables = [file for file in files if format_of(file) not in (None, ".txt")]
    return tables, [file for file in files if format_of(file) == ".txt"]


def _named_as_split(name: str) -> bool:
    """Whether a folder is called as splits are; COCO adds the year."""
    return re.sub(r"[-_]?\d{4}$", "", name.lower()) in _SPLITS


def _has_folder(folder: Path, name: str) -> bool:
    return any(entry.name == name and entry.is_dir() for entry in folder.iterdir())


def _has_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in image_suffixes() for entry in folder.iterdir() if not is_junk(entry.name))


def _of_split(files: Sequence[Path], split: str) -> list[Path]:
    return [file for file in files if split in (stem_of(file), _part(file)) or stem_of(file).startswith(f"{split}-")]


def _part(file: Path) -> str:
    """The split a file belongs to: its name without suffix and shard number."""
    return _SHARD_NUMBER.sub("", stem_of(file)) or stem_of(file)


def _open_split(files: list[Path], split: str | None, name: str, options: _Options) -> Rows:
    """The tables of one split."""
    root = options["root"]
    parts = sorted({_part(file) for file in files})
    if split is None:
        if len(parts) > 1:
            raise MmclError(f"{name}: it has the splits {', '.join(parts)}; name one as split")
        chosen, label = files, name
    else:
        chosen, label = _of_split(files, split), f"{name} ({split})"
    if not chosen:
        if len(files) == 1 and (rows := open_captions(files[0], split, name=label, root=root)) is not None:
            return rows  # of Karpathy's, one file has all splits
        no_split(name, split or "", parts)
    if len(chosen) == 1 and (rows := open_captions(chosen[0], None, name=label, root=root)) is not None:
        return rows
    if len(suffixes := sorted({str(format_of(file)) for file in chosen})) > 1:
        raise MmclError(f"{name}: one split in several formats ({', '.join(suffixes)}); keep one of them")
    return open_tables(chosen, name=label, folder=root or chosen[0].parent, separator=options["separator"])


def _open_captioned(metadata: Path, name: str, options: _Options) -> Rows:
    """A folder of images whose captions stand in a table."""
    loaded = load_tables([metadata], name, options["separator"])
    table = loaded.dataset
    if "image" not in table.column_names:
        if "file_name" not in table.column_names:
            have = ", ".join(table.column_names)
            raise MmclError(f"{metadata}: no column 'file_name' with the paths of the images; it has {have}")
        table = table.rename_column("file_name", "image")
    loaded = Loaded(table, loaded.unreadable)
    folder = options["root"] or metadata.parent.resolve()
    return rows_of(loaded, name=name, fingerprint=fingerprint([metadata]), folder=folder)
