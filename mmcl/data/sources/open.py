"""Any source of rows, by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmcl.config.data import ImageConfig, SourceConfig
from mmcl.data import samples
from mmcl.data.rows import NoSourceError, Rows, path_of_url
from mmcl.data.sources.captions import open_captions
from mmcl.data.sources.files import format_of, path_text
from mmcl.data.sources.folders import open_folder
from mmcl.data.sources.hub import open_hub
from mmcl.data.sources.tables import open_tables
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path
from mmcl.runtime.progress import log_progress
from mmcl.runtime.registry import Registry

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")

SOURCES: Registry[Callable[[str, str | None], Rows]] = Registry(
    "mmcl.sources",
    "source",
    {
        "sample": "mmcl.data.sources.open:open_sample",
        "torchvision": "mmcl.data.sources.torchvision_sets:open_torchvision",
    },
)
"""What opens ``KEY:NAME``, from NAME and the part to read. Another package adds its own by the entry-point group
``mmcl.sources``."""

PLACES = {
    "FILE": "A CSV, TSV, JSON-lines, JSON, Parquet or text file; COCO's, Karpathy's or Flickr's captions.",
    "FOLDER": "Tables, a split each; images with captions beside them or by class; BEIR's or img2dataset's layout.",
    "user/name": "A data set on the hub, or `user/name:config`.",
    "NAME-{0000..0019}.tar": "WebDataset tar shards, by path, URL or `pipe:COMMAND`.",
}
"""Other sources of rows by how they are named."""


def open_source(
    source: str | Path, *, split: str | None = None, separator: str | None = None, root: str | Path | None = None
) -> Rows:
    """The rows of ``source``, which is one of

    - a ``.csv``, ``.tsv``, ``.jsonl``, ``.json``, ``.parquet`` or ``.txt`` file; all but Parquet may be compressed
      (``.jsonl.gz``). CSV and TSV are UTF-8 with a header, quoted as spreadsheets do; their cells are text as written,
      so that ``007`` and ``NA`` survive. A CSV file may be separated by tabs, semicolons or ``|``. Where tabs separate,
      and quotes do not hold, a quote is a character like any other. Of JSON, a string is a string, and keys and types
      may differ from row to row: numbers among texts are texts, a value among lists is a list of one. Of ``.txt``,
      every line is a row with the column ``text``;
    - the captions of a data set as it is handed out (columns ``id``, ``image``, ``text``, a row an image): a ``.json``
      file with Karpathy's splits, COCO's ``captions_*.json``, Flickr's ``captions.txt`` or ``*.token`` file;
    - a folder with tables, one a split or ``<split>-<number>`` several; without tables, with a folder a split
      (``train/``, ``val/``, …) or a ``.txt`` file a split;
    - a folder written by ``datasets``' ``save_to_disk``, or by img2dataset;
    - a folder of images, captioned by ``metadata.{csv,jsonl,parquet}`` with a column ``file_name`` (which becomes the
      column ``image``), or by a ``.txt`` beside each image, or the ``caption`` of a ``.json`` (columns ``id``,
      ``image``, ``text``). Where all images lie in several subfolders, the subfolder's name is the column ``label``.
      Links are followed; what is hidden is left out;
    - ``torchvision:NAME`` or ``torchvision:NAME:FOLDER``, a data set of torchvision whose files lie in FOLDER;
    - ``sample:NAME``, a sample data set, or ``KEY:NAME`` of a package that registers KEY, see ``SOURCES``;
    - ``user/name`` or ``user/name:config``, a data set on the hub.

    ``split`` names the part to read: of a single file, the rows whose column ``split`` says so, or without it all rows.
    Otherwise it may be left out where there is only one. ``separator`` is the character between the fields of a CSV
    file, or of a ``.txt`` file that is one. ``root`` is the folder that paths of images in tables start from; by
    default that of the table. Raises ``MmclError`` if there is no such thing, if it is empty or malformed, or if
    ``split`` does not choose one part.
    """
    with log_progress(f"read {source}", None):
        return _open(source, split, separator, None if root is None else _root(root))


def is_registered(source: str) -> bool:
    """Whether ``source`` is ``KEY:NAME`` with a key of ``SOURCES``."""
    key, _, name = source.partition(":")
    return bool(name) and not name.startswith("//") and key in SOURCES


def open_sample(name: str, split: str | None) -> Rows:
    """A sample data set, fetched or drawn when it is first opened."""
    return open_folder(samples.get(name), split, name=f"sample:{name}")


def open_described(settings: SourceConfig, image: ImageConfig, where: str | None = None) -> Rows:
    """What a config describes as a source: :func:`open_source` with its split, separator and images' root.

    ``where`` is the key of ``settings`` in the config, such as ``data.train``, which an error then names.
    """
    with source_named_by(where):
        return open_source(settings.source, split=settings.split, separator=settings.separator, root=image.root)


@contextmanager
def source_named_by(where: str | None) -> Iterator[None]:
    """Within, the error of a source that is not there names the key of the config, ``where``, that describes it."""
    try:
        yield
    except NoSourceError as error:
        raise MmclError(f"{where}.source: {error}" if where else error) from None


def _root(root: str | Path) -> Path:
    folder = as_path(root)
    if not folder.is_dir():
        raise MmclError(f"{path_text(root)}: no such folder, from which the paths of images are to start")
    return folder.resolve()


def _open(source: str | Path, split: str | None, separator: str | None, root: Path | None) -> Rows:
    text = path_text(source)
    path = as_path(path_of_url(text) if text.lower().startswith("file:") else source)
    try:
        kind = "folder" if path.is_dir() else "file" if path.is_file() else None
    except OSError as error:
        raise MmclError(f"{text[:200]}: cannot be read: {error.strerror}") from error
    if kind == "folder":
        return open_folder(path, split, name=text, separator=separator, root=root)
    if kind == "file":
        if (rows := open_captions(path, split, name=text, root=root)) is not None:
            return rows
        rows = open_tables([path], name=text, folder=root or path.parent, separator=separator)
        return rows if split is None else rows.of_split(split)
    if is_registered(text):
        key, _, name = text.partition(":")
        return SOURCES[key](name, split)
    if format_of(path) is None and isinstance(source, str) and (hub := _HUB_NAME.fullmatch(source)):
        return open_hub(hub["name"], hub["config"], split, name=text, folder=root)
    place = "" if path.is_absolute() else f", relative to the working directory {path_text(Path.cwd())}"
    raise NoSourceError(f"{text}: no such file or folder{place} (a data set on the hub is written user/name)")
