"""Folders of images, with captions beside them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcl.data.images import image_suffixes
from mmcl.data.rows import Rows
from mmcl.data.sources.files import fingerprint, open_text, path_text
from mmcl.data.sources.tables import Loaded, rows_of

log = logging.getLogger("mmcl")

_JUNK = {"__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found"}
_STATS = re.compile(r"(\d+)_stats\.json")
_SHARD = re.compile(r"(\d{5,})(_stats\.json|\.parquet)")


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def is_img2dataset(folder: Path) -> bool:
    """Whether img2dataset wrote the folder as files: ``00000/``, ``00000.parquet``, ``00000_stats.json``."""
    return any((folder / found[1]).is_dir() for entry in folder.iterdir() if (found := _SHARD.fullmatch(entry.name)))


@dataclass
class _Found:
    """The files below a folder, and what was left out."""

    images: list[Path] = field(default_factory=list)
    beside: dict[Path, Path] = field(default_factory=dict)  # files that may hold captions, by name in lower case suffix
    hidden: list[str] = field(default_factory=list)
    hidden_images: int = 0
    others: Counter[str] = field(default_factory=Counter)  # suffixes that are no images'
    circles: int = 0
    dead: int = 0  # links that lead nowhere, and what is no file
    closed: int = 0  # folders that may not be read
    damaged: int = 0  # captions

    def left_out(self) -> str:
        """What was left out, for a message; empty if nothing was."""
        others = ", ".join(f"{suffix or 'without suffix'} {count:,}" for suffix, count in self.others.most_common(5))
        parts = [
            (len(self.hidden), f"hidden or system folders ({', '.join(sorted(set(self.hidden))[:5])})"),
            (self.hidden_images, "hidden image files"),
            (sum(self.others.values()), f"files that are not images ({others})"),
            (self.circles, "links back to a folder that they lie in"),
            (self.dead, "links that lead nowhere, or what is neither file nor folder"),
            (self.closed, "folders that may not be read"),
        ]
        return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def open_images(folder: Path, *, name: str, labelled: bool = True) -> Rows | None:
    """The images below a folder; None if there are none.

    Columns are ``id`` and ``image``, the path from the folder; ``text``, if any has a caption in the ``.txt`` or
    ``.json`` file beside it; and, if ``labelled``, ``label``, the subfolder of an image, where all lie in several.
    """
    import datasets

    found = _Found()
    _walk(folder, found, ())
    if left_out := found.left_out():
        log.warning("%s: left out: %s", name, left_out)
    if not found.images:
        return None
    images = sorted(found.images)
    relative = [image.relative_to(folder) for image in images]
    ids = [path_text(path.as_posix()) for path in relative]
    columns: dict[str, list[Any]] = {
        "id": ids,
        "image": [_written(*pair) for pair in zip(relative, images, strict=True)],
    }
    captions = [_caption(image, found) for image in images]
    if any(file.with_suffix(suffix) in found.beside for file in images for suffix in (".txt", ".json")):
        columns["text"] = captions
    labels = [path_text(path.parts[0]) if len(path.parts) > 1 else None for path in relative]
    if labelled and None not in labels and len(set(labels)) > 1:
        columns["label"] = labels
    if found.damaged:
        log.warning("%s: %d caption files are not JSON: left out", name, found.damaged)
    _report_downloads(folder, name)
    identity = fingerprint([*images, *sorted(found.beside.values())])
    dataset = datasets.Dataset.from_dict(columns)
    return rows_of(Loaded(dataset), name=name, fingerprint=identity, folder=folder.resolve())


def _walk(folder: Path, found: _Found, above: tuple[tuple[int, int], ...]) -> None:
    """Add what lies below ``folder``; ``above`` are the folders that it lies in, by device and inode."""
    state = folder.stat()
    above = (*above, (state.st_dev, state.st_ino))
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:
        found.closed += 1
        return
    stems: set[str] = set()
    texts: list[Path] = []
    for entry in entries:
        path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
        if is_junk(entry.name):
            if _is_folder(entry):
                found.hidden.append(path_text(entry.name))
            found.hidden_images += suffix in image_suffixes()
        elif _is_folder(entry):
            state = path.stat()
            if (state.st_dev, state.st_ino) in above:
                found.circles += 1
            else:
                _walk(path, found, above)
        elif not path.is_file():
            found.dead += 1
        elif suffix in image_suffixes():
            found.images.append(path)
            stems.add(path.stem)
        elif suffix in (".txt", ".json"):
            texts.append(path)
        elif entry.name != "Thumbs.db":
            found.others[path_text(suffix)] += 1
    for text in texts:
        if text.stem in stems:
            found.beside[text.with_suffix(text.suffix.lower())] = text
        elif not _STATS.fullmatch(text.name):
            found.others[text.suffix.lower()] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _written(relative: Path, image: Path) -> str:
    """A path as a table holds it; one that is no UTF-8 as a URL, in which any byte can be written."""
    try:
        str(relative).encode()
    except UnicodeEncodeError:
        return image.absolute().as_uri()
    return relative.as_posix()


def _caption(image: Path, found: _Found) -> str | None:
    """What the ``.txt`` beside an image says, or else the ``caption`` in the ``.json``."""
    text, described = image.with_suffix(".txt"), image.with_suffix(".json")
    said = None
    if text in found.beside:
        with open_text(found.beside[text]) as opened:
            said = opened.read().strip()
    if not said and described in found.beside:
        try:
            content = json.loads(found.beside[described].read_bytes())
        except (ValueError, RecursionError):
            found.damaged += 1
            return said
        caption = content.get("caption") if isinstance(content, dict) else None
        return caption.strip() if isinstance(caption, str) else said
    return said


def _report_downloads(folder: Path, name: str) -> None:
    """Say how many rows of its table img2dataset could not download."""
    wanted = had = 0
    for file in folder.iterdir():
        if _STATS.fullmatch(file.name):
            try:
                stats = json.loads(file.read_bytes())
                wanted, had = wanted + int(stats["count"]), had + int(stats["successes"])
            except (ValueError, TypeError, KeyError, RecursionError):
                log.warning("%s: %s is damaged", name, file.name)
    if wanted > had:
        log.warning("%s: %d of %d images were not downloaded", name, wanted - had, wanted)
