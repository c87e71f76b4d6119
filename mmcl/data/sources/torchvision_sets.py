"""Data sets of torchvision by the names of their classes, such as ``torchvision:CIFAR10``: images with a label each.

The files are read by torchvision, from a folder where it keeps them. What it holds as arrays is written once into the
cache, losslessly; images that are files stay where they are.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmcl.data.rows import Rows
from mmcl.data.sources.files import fingerprint, path_text
from mmcl.data.sources.tables import Loaded, load_tables, rows_of
from mmcl.runtime.errors import MmclError, first_line, nearest
from mmcl.runtime.files import atomic_file, cache_dir
from mmcl.runtime.progress import progress

_BLOCK = 1000  # images a row group
_SCHEMA = pa.schema({"image": pa.binary(), "label": pa.string()})


def open_torchvision(name: str, split: str | None) -> Rows:
    """The rows of ``torchvision:NAME`` or ``torchvision:NAME:FOLDER``, with the columns ``image`` and ``label``.

    Args:
        name: of a class in ``torchvision.datasets``, and perhaps the folder where its files lie, its ``root``; by
            default the one that :func:`fetch` fills.
        split: ``train``, ``test`` or another part that the data set has.

    Raises:
        MmclError: there is no such data set or part, its files are not there, or it has no class for each image.
    """
    import datasets

    kind, root = _named(name)
    title = f"torchvision:{name}" + (f" ({split})" if split else "")
    data = _made(kind, root, split, title, download=False)
    if hasattr(data, "samples") and not hasattr(data, "data"):
        paths = [Path(path).resolve() for path, _ in data.samples]
        columns = {
            "id": [path_text(path.relative_to(root.resolve())) for path in paths],
            "image": [str(path) for path in paths],
            "label": [_label(data, target, title) for _, target in data.samples],
        }
        loaded = Loaded(datasets.Dataset.from_dict(columns))
        return rows_of(loaded, name=title, fingerprint=fingerprint(paths), folder=root.resolve())
    files = sorted(path for path in root.rglob("*") if path.is_file())
    identity = fingerprint(files, kind.__name__, split)
    table = cache_dir("torchvision_tables") / f"{identity}.parquet"
    if not table.is_file():
        with atomic_file(table) as beside:
            _write(data, beside, title)
    return rows_of(load_tables([table], title), name=title, fingerprint=identity, folder=None)


def fetch(name: str) -> Path:
    """Have torchvision download a data set; returns the folder where its files lie.

    Raises:
        MmclError: there is no such data set, or it cannot be downloaded.
    """
    kind, root = _named(name)
    for split in ("train", "test"):
        _made(kind, root, split if _parts(kind) else None, f"torchvision:{name}", download=True)
    return root


def _named(name: str) -> tuple[Callable[..., Any], Path]:
    """The class, and the folder of its files."""
    import torchvision

    key, _, folder = name.partition(":")
    known = [each for each in torchvision.datasets.__all__ if each not in ("FakeData", "ImageFolder", "DatasetFolder")]
    if key not in known:
        raise MmclError(f"torchvision:{key}: torchvision has no such data set; {nearest(key, known)}")
    return getattr(torchvision.datasets, key), Path(folder) if folder else cache_dir("torchvision")


def _parts(kind: Callable[..., Any]) -> str | None:
    """What the argument that chooses the part is called."""
    return next((each for each in ("split", "train") if each in inspect.signature(kind).parameters), None)


def _made(kind: Callable[..., Any], root: Path, split: str | None, title: str, *, download: bool) -> Any:
    chosen = _parts(kind)
    if (chosen is None) != (split is None):
        what = "has no parts; leave the split out" if chosen is None else "has parts; name one, such as train or test"
        raise MmclError(f"{title}: {what}")
    if chosen == "train" and split not in ("train", "test"):
        raise MmclError(f"{title}: no such part; it has train and test")
    arguments: dict[str, Any] = {} if chosen is None else {chosen: split == "train" if chosen == "train" else split}
    if "download" in inspect.signature(kind).parameters:
        arguments["download"] = download
    try:
        return kind(root, **arguments)
    except (RuntimeError, OSError, ValueError, ModuleNotFoundError) as error:
        where = "" if download else f" in {path_text(root)}; name their folder, torchvision:NAME:FOLDER, or fetch them"
        where += "" if download else f" by mmcl data get torchvision:{kind.__name__}"
        raise MmclError(f"{title}: torchvision cannot read its files{where} ({first_line(error)})") from None


def _write(data: Any, path: Path, title: str) -> None:
    """Image and label of each item, as Parquet."""
    with pq.ParquetWriter(path, _SCHEMA) as writer, progress(f"write {title}", len(data), "images") as advance:
        for start in range(0, len(data), _BLOCK):
            block = range(start, min(start + _BLOCK, len(data)))
            rows = [_row(data, data[number], title) for number in block]
            writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
            advance(len(block))


def _row(data: Any, item: Any, title: str) -> dict[str, Any]:
    image, target = item if isinstance(item, tuple) and len(item) == 2 else (None, None)
    if not isinstance(image, Image.Image):
        raise MmclError(f"{title}: holds no images with a class each")
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return {"image": encoded.getvalue(), "label": _label(data, target, title)}


def _label(data: Any, target: Any, title: str) -> str | None:
    """The name of a class where the data set has names, else its number; None for -1, of images without a class."""
    try:
        number = int(target)
    except (TypeError, ValueError):
        raise MmclError(f"{title}: holds no images with a class each") from None
    if number < 0:
        return None
    names = getattr(data, "classes", None)
    name = names[number] if names else number
    return str(name[0] if isinstance(name, tuple) else name)
