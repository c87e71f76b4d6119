"""Captions of images as data sets hand them out: Karpathy's splits, COCO's annotations, Flickr's lists."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmcl.data.rows import Rows
from mmcl.data.sources.files import fingerprint, format_of, open_bytes, open_text, path_text
from mmcl.data.sources.tables import Loaded, rows_of
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

_OBJECT = re.compile(
    rb'(\xef\xbb\xbf)?\s*\{\s*"(dataset|images|info|licenses|annotations|type|contributors|categories|version|description)"'
    rb'\s*:\s*["\[{\d]'
)
_LISTED = re.compile(r"image(_name)?\s*,\s*(caption|comment|text)s?\s*", re.IGNORECASE)
_TOKEN = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
_FLICKR_FOLDERS = (
    "",
    "Images",
    "images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k_images",
    "flickr30k-images",
)
_KARPATHY, _COCO, _COCO_SAID = {"filename", "split", "sentences"}, {"id", "file_name"}, {"image_id", "caption"}
_TRIED = 100  # images looked for before it is said that there are none

_Captions = dict[str, list[str]]


def open_captions(file: Path, split: str | None, *, name: str, root: Path | None = None) -> Rows | None:
    """The columns ``id`` (an image's name), ``image`` (its path) and ``text`` (its captions); None for another file.

    Images lie beside the file or in the folders that the data set calls them by, there or below ``root``. ``split`` is
    one of the file's own, in Karpathy's (COCO's ``restval`` is one), or several joined by ``+``.

    Raises ``MmclError`` if ``split`` does not choose images, or if they are not there.
    """
    import datasets

    folder = root or file.resolve().parent
    columns = None
    if format_of(file) == ".json":
        columns = _read_json(file, split, folder)
    elif file.suffix.lower() in (".txt", ".token") and split is None:
        columns = _read_flickr(file, folder)
    if columns is None:
        return None
    label = f"{name} ({split})" if split and not name.endswith(f"({split})") else name
    identity = fingerprint([file], split)
    return rows_of(Loaded(datasets.Dataset.from_dict(columns)), name=label, fingerprint=identity, folder=folder)


def _read_json(file: Path, split: str | None, folder: Path) -> dict[str, list[Any]] | None:
    with open_bytes(file) as opened:
        if _OBJECT.match(opened.read(4096)) is None:
            return None
    try:
        with open_bytes(file) as opened:
            content = json.loads(opened.read().decode("utf-8-sig"))
        images = content["images"]
        if all(image.keys() >= _KARPATHY and all("raw" in s for s in image["sentences"]) for image in images):
            return _karpathy(file, images, split, folder)
        said = content["annotations"]
        if all(image.keys() >= _COCO for image in images) and all(caption.keys() >= _COCO_SAID for caption in said):
            return _coco(file, images, said, split, folder)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # JSON lines, say
        pass
    return None


def _karpathy(file: Path, images: list[dict[str, Any]], split: str | None, folder: Path) -> dict[str, list[Any]]:
    sizes = Counter(image["split"] for image in images)
    known = ", ".join(f"{part} ({size:,})" for part, size in sizes.items())
    if split is None and len(sizes) > 1:
        raise MmclError(f"{file}: it has the splits {known}; name one as split, or several as train+restval")
    wanted = set(sizes) if split is None else set(split.split("+"))
    if missing := sorted(wanted - set(sizes)):
        raise MmclError(f"{file}: no split '{missing[0]}'; it has {known}")
    images = [image for image in images if image["split"] in wanted]

    def path(image: dict[str, Any], way: tuple[str, bool]) -> PurePosixPath:
        inside, nested = way
        return PurePosixPath(inside, image.get("filepath", "") if nested else "", image["filename"])

    ways = list(itertools.product(("", "images"), (True, False)))
    way = _first_that_finds(file, folder, images, ways, path)
    return {
        "id": [image["filename"] for image in images],
        "image": [str(path(image, way)) for image in images],
        "text": [[sentence["raw"] for sentence in image["sentences"]] for image in images],
    }


def _coco(
    file: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], split: str | None, folder: Path
) -> dict[str, list[Any]]:
    if split is not None:
        raise MmclError(f"{file}: COCO's files are one split each; leave out split '{split}'")
    captions: dict[Any, list[str]] = {image["id"]: [] for image in images}
    strangers = 0
    for said in annotations:
        if said["image_id"] in captions:
            captions[said["image_id"]].append(str(said["caption"] or ""))
        else:
            strangers += 1
    if strangers:
        log.warning("%s: %d captions are of images that it does not list: left out", file, strangers)
    part = file.stem.rsplit("_", 1)[-1]  # captions_train2014.json
    folders = ["", "images", part, f"images/{part}", "..", f"../{part}", f"../images/{part}", "../images"]

    def path(image: dict[str, Any], inside: str) -> PurePosixPath:
        return PurePosixPath(inside, image["file_name"])

    inside = _first_that_finds(file, folder, images, folders, path)
    return {
        "id": [image["file_name"] for image in images],
        "image": [str(path(image, inside)) for image in images],
        "text": [captions[image["id"]] for image in images],
    }


def _read_flickr(file: Path, folder: Path) -> dict[str, list[Any]] | None:
    """``image,caption`` lines below such a header, or lines of ``image#number``, a tab and the caption."""
    with open_text(file) as lines:
        first = next(lines, "")
        listed, tokens = _LISTED.fullmatch(first), _TOKEN.fullmatch(first.rstrip("\r\n"))
        if not listed and not tokens:
            return None
        captions, odd = _by_image(lines if listed else itertools.chain([first], lines), bool(listed))
    if odd:
        log.warning("%s: %d lines name no image with a caption, such as line %d: left out", file, len(odd), odd[0])
    images = list(captions)
    if not images:
        raise MmclError(f"{path_text(file)}: there are no captions")

    def path(image: str, inside: str) -> PurePosixPath:
        return PurePosixPath(inside, image)

    inside = _first_that_finds(file, folder, images, _FLICKR_FOLDERS, path)
    return {"id": images, "image": [str(path(image, inside)) for image in images], "text": list(captions.values())}


def _by_image(lines: Iterable[str], listed: bool) -> tuple[_Captions, list[int]]:
    """The captions of each image, and the numbers of lines that are none."""
    captions: _Captions = {}
    odd = []
    for number, line in enumerate(lines, 2 if listed else 1):
        line = line.rstrip("\r\n")
        if listed:
            image, _, caption = line.partition(",")
            if len(caption) > 1 and caption[0] == caption[-1] == '"':
                caption = caption[1:-1].replace('""', '"')
        else:
            token = _TOKEN.fullmatch(line)
            image, caption = (token["image"], token["caption"]) if token else ("", "")
        if image.strip() and caption.strip():
            captions.setdefault(image.strip(), []).append(caption.strip())
        elif line.strip():
            odd.append(number)
    return captions, odd


def _first_that_finds(
    file: Path, folder: Path, images: Sequence[Any], ways: Sequence[Any], path: Callable[[Any, Any], PurePosixPath]
) -> Any:
    """The first of the ways to lay images out by which one of them is there."""
    for way in ways:
        if any((folder / path(image, way)).is_file() for image in images[:_TRIED]):
            return way
    if not images:
        raise MmclError(f"{path_text(file)}: it lists no images")
    tried = dict.fromkeys(str(folder / path(images[0], way)) for way in ways)
    raise MmclError(f"{path_text(file)}: its images are not there; looked for {', '.join(tried)}; name their root")
