"""Rows from files, folders and the hub, read by `datasets` into memory-mapped Arrow tables."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import datasets

from mmcl.data.images import PICTURE_SUFFIXES
from mmcl.data.karpathy import is_karpathy, read_karpathy
from mmcl.data.rows import Rows
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import cache_dir

log = logging.getLogger("mmcl")

__all__ = ["Rows", "open_source"]

_READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_SHARD_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+)?$")


def open_source(source: str | Path, *, split: str | None = None) -> Rows:
    """The rows of ``source``, which is one of

    - a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet`` file. CSV and TSV are UTF-8 with a header, quoted as
      spreadsheets do (a TSV field that begins with ``"`` must end with it); their cells are text as written, so that
      ``007`` and ``NA`` survive. A CSV file may be separated by tabs or semicolons, as open_clip's are;
    - a ``.json`` file with Karpathy's splits of a caption data set (columns ``id``, ``image``, ``text``);
    - a folder with such files, one a split or ``<split>-<number>`` several;
    - a folder written by ``datasets``' ``save_to_disk``;
    - a folder of pictures, captioned by ``metadata.{csv,jsonl,parquet}`` with a column ``file_name`` (which becomes
      the column ``image``), or by a ``.txt`` beside each picture (columns ``id``, ``image``, ``text``);
    - ``sample:NAME``, a sample data set;
    - ``user/name`` or ``user/name:config``, a data set on the hub.

    ``split`` names the part to read: of a single file, the rows whose column ``split`` says so, or without it all rows.
    Otherwise it may be left out where there is only one. Raises ``MmclError`` if there is no such thing, if it is empty
    or malformed, or if ``split`` does not choose one part.
    """
    text = str(source)
    if text.startswith("sample:"):
        from mmcl.data import samples

        return _open_folder(samples.get(text.removeprefix("sample:")), split, name=text)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, split, name=text)
    if path.is_file():
        if is_karpathy(path) and (columns := read_karpathy(path, split)) is not None:
            name = f"{text} ({split})" if split else text
            fingerprint = _fingerprint([path], split)
            return _rows(
                datasets.Dataset.from_dict(columns), name=name, fingerprint=fingerprint, folder=path.resolve().parent
            )
        rows = _open_tables([path], name=text, folder=path.parent)
        return rows if split is None else rows.of_split(split)
    if path.suffix.lower() not in _READERS and isinstance(source, str) and (hub := _HUB_NAME.fullmatch(source)):
        return _open_hub(hub["name"], hub["config"], split, name=text)
    raise MmclError(f"{text}: no such file or folder (a data set on the hub is written user/name)")


def _open_tables(files: Sequence[Path], *, name: str, folder: Path) -> Rows:
    return _rows(_load(files, name), name=name, fingerprint=_fingerprint(files), folder=folder.resolve())


def _load(files: Sequence[Path], name: str) -> datasets.Dataset:
    """The rows of files of one format, by way of an Arrow copy in the cache."""
    suffix = files[0].suffix.lower()
    if suffix not in _READERS:
        raise MmclError(f"{name}: no reader for '{suffix}' files; {nearest(suffix, _READERS)}")
    files = [file.resolve() for file in files]
    for file in files:
        if file.stat().st_size == 0:
            raise MmclError(f"{file}: the file is empty")
    options: dict[str, Any] = {}
    if suffix in (".csv", ".tsv"):
        options, *others = [_csv_options(file) for file in files]
        if any(other["features"] != options["features"] for other in others):
            raise MmclError(f"{name}: the headers of {len(files)} files differ; give them the same columns")
    with _reading(name, files):
        return datasets.load_dataset(
            _READERS[suffix],
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(cache_dir("datasets")),
            **options,
        )


def _csv_options(file: Path) -> dict[str, Any]:
    """Options of the CSV reader, after a look at the first two records.

    Types are not guessed: a guess from the first rows turns "007" into 7, "NA" into nothing, and fails on later rows.
    """
    separator, (header, first) = _separator(file)
    if not first:
        raise MmclError(f"{file}: there are no rows{' below the header' if header else ''}")
    if repeated := {column for column in header if header.count(column) > 1}:
        raise MmclError(f"{file}: the header names {sorted(repeated)[0]!r} twice; rename one")
    if len(first) > len(header):  # pandas would take the surplus for an index and shift every column
        raise MmclError(
            f"{file}: the first row has {len(first)} fields, the header {len(header)}; "
            "quote fields that contain the separator"
        )
    features = datasets.Features({column: datasets.Value("string") for column in header})
    return {"sep": separator, "encoding": "utf-8-sig", "features": features, "keep_default_na": False}


def _separator(file: Path) -> tuple[str, list[list[str]]]:
    """What separates the fields, and the header and the first row (empty where there are none).

    A ``.csv`` is taken for one of commas unless header and row then differ, or are a single field, and by tabs or
    semicolons are neither.
    """
    tab_separated = file.suffix.lower() == ".tsv"
    found = {}
    for separator in "\t" if tab_separated else ",\t;":
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.reader(lines, delimiter=separator)
                found[separator] = [*islice(filter(None, reader), 2), [], []][:2]
        except (UnicodeDecodeError, csv.Error) as error:
            raise MmclError(f"{file}: not a UTF-8 {file.suffix[1:].upper()} file: {error}") from error
    for separator, (header, first) in found.items():
        if len(header) == len(first) > 1:
            if separator != "," and not tab_separated:
                log.info("%s: read as separated by %s", file, "tabs" if separator == "\t" else "semicolons")
            return separator, [header, first]
    return next(iter(found.items()))


def _open_folder(folder: Path, split: str | None, *, name: str) -> Rows:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_saved(folder, split, name=name)
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in _READERS and file.is_file())
    metadata = [file for file in tables if file.stem == "metadata"]
    if split is not None and not metadata:
        files = [file for file in tables if split in (file.stem, _part(file)) or file.stem.startswith(f"{split}-")]
        if files:
            return _open_tables(_one_format(files, name), name=f"{name} ({split})", folder=folder)
        if (folder / split).is_dir():
            return _open_folder(folder / split, None, name=f"{name} ({split})")
        parts = [_part(file) for file in tables] or [entry.name for entry in folder.iterdir() if entry.is_dir()]
        _no_split(name, split, parts)
    if split is not None:
        _no_split(name, split, [])
    if metadata:
        return _open_captioned(metadata[0], name=name)
    if tables:
        parts = sorted({_part(file) for file in tables})
        if len(parts) > 1:
            raise MmclError(f"{name}: it has the splits {', '.join(parts)}; name one as split")
        return _open_tables(_one_format(tables, name), name=name, folder=folder)
    return _open_pictures(folder, name=name)


def _part(file: Path) -> str:
    """The split a file belongs to: its name without suffix and shard number."""
    return _SHARD_NUMBER.sub("", file.stem) or file.stem


def _one_format(files: list[Path], name: str) -> list[Path]:
    if len(suffixes := sorted({file.suffix.lower() for file in files})) > 1:
        raise MmclError(f"{name}: one split in several formats ({', '.join(suffixes)}); keep one of them")
    return files


def _no_split(name: str, split: str, parts: Sequence[str]) -> NoReturn:
    if not parts:
        raise MmclError(f"{name}: it has no splits; leave out split '{split}'")
    raise MmclError(f"{name}: no split '{split}'; it has {', '.join(sorted(set(parts)))}")


def _open_saved(folder: Path, split: str | None, *, name: str) -> Rows:
    """A folder written by ``save_to_disk``."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with _reading(name, []):
        saved = datasets.load_from_disk(str(folder))
    return _rows(
        _choose(saved, split, name), name=name, fingerprint=_fingerprint(files, split), folder=folder.resolve()
    )


def _choose(loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, name: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        if split is not None and str(loaded.split) != split:
            _no_split(name, split, [])
        return loaded
    parts = sorted(str(part) for part in loaded)
    if split is None and len(parts) == 1:
        split = parts[0]
    if split is None:
        raise MmclError(f"{name}: it has the splits {', '.join(parts)}; name one as split")
    if split not in parts:
        _no_split(name, split, parts)
    return loaded[split]


def _open_captioned(metadata: Path, *, name: str) -> Rows:
    """A folder of pictures whose captions stand in a table."""
    table = _load([metadata], name)
    if "image" not in table.column_names:
        if "file_name" not in table.column_names:
            have = ", ".join(table.column_names)
            raise MmclError(f"{metadata}: no column 'file_name' with the paths of the pictures; it has {have}")
        table = table.rename_column("file_name", "image")
    return _rows(table, name=name, fingerprint=_fingerprint([metadata]), folder=metadata.parent.resolve())


def _open_pictures(folder: Path, *, name: str) -> Rows:
    """A folder of pictures, with a ``.txt`` beside each that has a caption."""
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
    if not pictures:
        raise MmclError(f"{name}: the folder holds neither tables ({', '.join(_READERS)}) nor pictures")
    paths = [picture.relative_to(folder).as_posix() for picture in pictures]
    columns: dict[str, list[str | None]] = {"id": list(paths), "image": list(paths)}
    beside = [picture.with_suffix(".txt") for picture in pictures]
    captions = [caption for caption in beside if caption.is_file()]
    if captions:
        columns["text"] = [_caption(caption) if caption.is_file() else None for caption in beside]
    return _rows(
        datasets.Dataset.from_dict(columns),
        name=name,
        fingerprint=_fingerprint(pictures + captions),
        folder=folder.resolve(),
    )


def _caption(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise MmclError(f"{file}: not UTF-8 text: {error}") from error


def _open_hub(hub_name: str, config: str | None, split: str | None, *, name: str) -> Rows:
    with _reading(name, []):
        try:
            loaded = datasets.load_dataset(hub_name, config, cache_dir=str(cache_dir("datasets")))
        except ConnectionError as error:
            raise MmclError(f"{name}: no such file or folder here, and the hub cannot be reached") from error
        except FileNotFoundError as error:
            raise MmclError(f"{name}: no such file or folder here, and no such data set on the hub") from error
    dataset = _choose(loaded, split, name)
    label = f"{name} ({split})" if split else name
    return _rows(dataset, name=label, fingerprint=dataset._fingerprint, folder=None)


def _rows(dataset: datasets.Dataset, *, name: str, fingerprint: str, folder: Path | None) -> Rows:
    if len(dataset) == 0:
        raise MmclError(f"{name}: there are no rows")
    return Rows(dataset, name=name, fingerprint=fingerprint, folder=folder)


def _fingerprint(files: Sequence[Path], *more: object) -> str:
    """From paths, sizes and times of change: reading a hundred gigabytes only to name them would take minutes."""
    stats = [(file.resolve(), file.stat()) for file in files]
    state = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.blake2b(repr((state, more)).encode(), digest_size=16).hexdigest()


@contextmanager
def _reading(name: str, files: Sequence[Path]) -> Iterator[None]:
    """Keep `datasets` quiet, and turn its failure into one line that names the cause; a full disk stays ``OSError``."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except MmclError:
        raise
    except Exception as error:
        causes = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)  # type: ignore[arg-type]
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
                raise cause from None
        reason = _bad_json_line(files) or " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
        raise MmclError(f"{name}: cannot be read: {reason}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _bad_json_line(files: Sequence[Path]) -> str | None:
    """What is wrong with the first line of JSON-lines files that is not JSON, or no Unicode text: the reader names a
    position within a block at best."""
    for file in files:
        if file.suffix.lower() == ".jsonl":
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        json.dumps(json.loads(line.strip() or b"null"), ensure_ascii=False).encode()
                    except UnicodeEncodeError:  # an escape such as \ud83d without its other half
                        return f"line {number} of {file.name} has half of a surrogate pair; write the character whole"
                    except ValueError as error:
                        return f"line {number} of {file.name} is not JSON ({error})"
    return None
