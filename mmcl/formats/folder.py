"""Model folders: written at once or not at all, checked when read, never unpickled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import TableProcessor
from mmcl.data.processors.text import TextProcessor
from mmcl.formats.card import model_card
from mmcl.formats.heads import build_heads, read_heads, save_heads
from mmcl.formats.plausible import require_plausible, weights_bytes
from mmcl.formats.sentence_transformers import write as writer
from mmcl.formats.sentence_transformers.read import MODULES
from mmcl.formats.tensor_files import require_readable_weights
from mmcl.formats.tokenizers import save_tokenizer
from mmcl.formats.towers.image import describe_image_tower, rebuild_image_tower
from mmcl.formats.towers.table import describe_table_tower, rebuild_table_tower, save_fields
from mmcl.formats.towers.text import describe_text_tower, rebuild_text_tower
from mmcl.formats.weights import load_weights, save_weights
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.table.embedder import TableEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Conventions, Towers
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.files import atomic_folder, folder_to_write, read_json, write_json
from mmcl.runtime.full_disk import full_disk_is_oserror
from mmcl.runtime.version import __version__

# 2: towers of CLIP models, described by their configs. 3: heads of any dense layers, training heads, prompts
# left out of the pooling. 4: towers of any name, with their modality. 5: any number of heads. 6: towers
# of tables. 7: heads of other layers, layers over token states, texts read without special tokens. All earlier ones are
# read.
FORMAT_VERSION = 7
DESCRIPTION, WEIGHTS = "mmcl.json", "model.safetensors"


def save(model: Towers, folder: Path, complete: Callable[[Path], object] | None = None) -> Path:
    """Write a model folder that :func:`mmcl.load` opens; an old one there is replaced.

    The folder of a model of texts alone is also a sentence-transformers folder.

    Args:
        model: to save.
        folder: its place.
        complete: writes what else belongs into the new folder, before that takes its place.

    Raises:
        MmclError: ``folder`` holds something other than a model.
        OSError: the disk is full or refuses.
    """
    folder = folder.expanduser()
    if folder_to_write(folder).exists() and not (folder / DESCRIPTION).is_file() and any(folder.iterdir()):
        raise MmclError(f"{folder}: exists and is no model folder, so it is not replaced; choose another")
    description = {
        "format_version": FORMAT_VERSION,
        "mmcl_version": __version__,
        "name": model.name,
        "dim": model.width,
        "conventions": asdict(model.conventions),
        "towers": {name: _describe(model.embedder(name)) for name in model.names},
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "card": model.card,
    }
    with atomic_folder(folder) as beside, full_disk_is_oserror(folder):
        description["heads"] = save_heads(model.heads, beside)
        if model.modalities == {"text"} and not any(writer.cannot_express(model.text(name)) for name in model.names):
            writer.write(model, beside)
        else:
            save_weights(model.embedders, beside / WEIGHTS)
            _save_processors(model, beside)
        write_json(beside / DESCRIPTION, description)
        (beside / "README.md").write_text(model_card(model), encoding="utf-8")
        if complete is not None:
            complete(beside)
    model.path = folder
    return folder


def _save_processors(model: Towers, folder: Path) -> None:
    """Write the own files of tokenizers, image processors and the fields of tables."""
    kinds = {name: model.modality(name) for name in model.names}
    for name in kinds:
        processor, place = model.embedder(name).processor, _place(folder, name, kinds)
        place.mkdir(exist_ok=True)
        if isinstance(processor, TextProcessor):
            save_tokenizer(processor.tokenizer, place)
        elif isinstance(processor, TableProcessor):
            save_fields(processor, place)
        else:
            write_json(place / "preprocessor_config.json", preprocessor(processor))


def _describe(embedder: Embedder) -> dict[str, Any]:
    if isinstance(embedder, TextEmbedder):
        spec = describe_text_tower(embedder.processor, embedder.tower)
    elif isinstance(embedder, ImageEmbedder):
        spec = describe_image_tower(embedder.processor, embedder.tower)
    elif isinstance(embedder, TableEmbedder):
        spec = describe_table_tower(embedder)
    else:
        raise TypeError(f"a {type(embedder).__name__} cannot be saved")
    return {"modality": embedder.modality, "tower": spec, "head": embedder.head.spec()}


def _place(folder: Path, name: str, kinds: Mapping[str, str]) -> Path:
    """Where the own files of a tower's tokenizer, image processor or fields are: beside the weights, for the only tower
    of its kind; else in a folder of the tower's name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"'{name:.60}' is no name of a tower")
    return folder if list(kinds.values()).count(kinds[name]) == 1 else folder / name


def _of_texts(folder: Path, name: str, kinds: Mapping[str, str]) -> tuple[Path, Path]:
    """Where the weights of a text tower are, and where its tokenizer's own files."""
    if not (folder / MODULES).is_file():
        return folder, _place(folder, name, kinds)
    (both,) = writer.folders_of_texts(folder, name)
    return both, both


def read_folder(folder: Path) -> Towers:
    """The model in a folder that :func:`save` wrote, this release's or an earlier one's.

    Raises:
        MmclError: it is damaged, or a newer mmcl wrote it.
    """
    description = read_json(folder / DESCRIPTION)
    parts = writer.folders_of_texts(folder)
    for part in parts:
        require_readable_weights(part)
    version = description.get("format_version", 0)
    if not isinstance(version, int):
        raise MmclError(f"{folder / DESCRIPTION}: damaged (format_version is {version!r:.60}); take a fresh copy")
    if version > FORMAT_VERSION:
        raise MmclError(
            f"{folder}: written by mmcl {description.get('mmcl_version', '?')} in format {version}, but this is "
            f"mmcl {__version__}, which reads up to format {FORMAT_VERSION}; upgrade mmcl"
        )
    embedders: dict[str, Embedder] = {}
    try:
        sizes = {key: description.get(key) for key in ("dim", "towers", "heads", "training_head")}
        require_plausible(sizes, sum(map(weights_bytes, parts)), folder / DESCRIPTION)
        kinds = {name: spec.get("modality", name) for name, spec in description["towers"].items()}
        for name, spec in description["towers"].items():
            if kinds[name] == "image":
                images, image = rebuild_image_tower(spec["tower"])
                head = Head.from_spec(spec["head"], image.width, description["dim"])
                embedders[name] = ImageEmbedder(images, image, head)
            elif kinds[name] == "text":
                texts, text = rebuild_text_tower(spec["tower"], *_of_texts(folder, name, kinds))
                head = Head.from_spec(spec["head"], text.width, description["dim"])
                embedders[name] = TextEmbedder(texts, text, head)
            elif kinds[name] == "table":
                table, fields = rebuild_table_tower(spec["tower"], folder, _place(folder, name, kinds))
                head = Head.from_spec(spec["head"], fields.width, description["dim"])
                embedders[name] = TableEmbedder(table, fields, head)
            else:
                raise ValueError(f"there is no tower of the kind '{kinds[name]}'")
        model = Towers(embedders, description["dim"], description["name"])
        model.conventions = Conventions(**description.get("conventions", {}))
        model.card = description.get("card", {})
        model.logit_scale, model.logit_bias = (description.get(key) for key in ("logit_scale", "logit_bias"))
        model.heads = build_heads(description)
        _check_values(model)
    except MmclError:
        raise
    except Exception as error:  # what a network's constructor meets in a value of another kind or size
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise MmclError(f"{folder / DESCRIPTION}: damaged ({reason}); take a fresh copy") from None
    if (folder / MODULES).is_file():
        writer.read_weights(model, folder)
    else:
        load_weights(model.embedders, folder / WEIGHTS)
    read_heads(model.heads, description, folder)
    return model


def _check_values(model: Towers) -> None:
    """What nothing else looks at before it is used."""
    if not isinstance(model.name, str) or not isinstance(model.card, dict):
        raise TypeError("name is no text, or card no object")
    for key in ("logit_scale", "logit_bias"):
        if (value := getattr(model, key)) is not None and not math.isfinite(value):
            raise ValueError(f"{key} is {value}")


def preprocessor(processor: ImageProcessor) -> dict[str, Any]:
    """An image's way to pixels, in the vocabulary of transformers' image processors."""
    how, *_ = mode = processor.resize.split("-")
    side = next((int(part) for part in mode if part.isdecimal()), processor.size)
    resampling = next(
        (Image.Resampling[part.upper()] for part in mode if part.upper() in Image.Resampling.__members__), 3
    )
    if processor.patch is not None:
        most = (processor.size // processor.patch) ** 2
        shape = {"patch_size": processor.patch, "max_num_patches": most}
        kind = "Siglip2ImageProcessor"
        return {"image_processor_type": kind, **shape, **_levels(processor), "resample": int(resampling)}
    square, cut = {"height": processor.size, "width": processor.size}, how in ("crop", "keep") or side != processor.size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": how != "keep",
        "size": {"shortest_edge": side} if how == "crop" else {"height": side, "width": side},
        "resample": int(resampling),
        "do_center_crop": cut,
        "crop_size": square,
        **_levels(processor),
    }


def _levels(processor: ImageProcessor) -> dict[str, Any]:
    return {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }
