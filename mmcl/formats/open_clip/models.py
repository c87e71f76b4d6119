"""open_clip models: by name and tag, from a checkpoint file, a folder or the hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.open_clip_text import OpenClipTextProcessor
from mmcl.formats.open_clip.checkpoint_files import Layout, ambiguous, candidates, read_state
from mmcl.formats.open_clip.nets import QUICK, build_model, fill, model_config, tower_config
from mmcl.formats.open_clip.text import create_text_tower
from mmcl.formats.plausible import require_plausible, require_size
from mmcl.formats.transformers.clip import open_file as open_transformers_file
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.open_clip import OpenClipTextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, first_line, nearest
from mmcl.runtime.files import read_json
from mmcl.runtime.quiet import quiet

log = logging.getLogger("mmcl")
CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def is_model_name(text: str) -> bool:
    """Whether the first part of ``text`` is a model of open_clip's.

    Raises:
        MmclError: it nearly is.
    """
    import open_clip

    name = text.split("/")[0]
    known = open_clip.list_models()
    close = nearest(name, known)
    if name not in known and name.startswith(("ViT-", "RN50", "RN101", "convnext_", "coca_", "EVA0", "MobileCLIP")):
        raise MmclError(f"{text}: open_clip has no model '{name}'; {close}")
    return name in known


def open_named(text: str) -> Towers:
    """The model ``NAME/TAG`` or ``NAME/FILE``, which is also what it is called: an index made with it opens it again.

    Raises:
        MmclError: no such tag or file, weights for the other activation, or weights that cannot be fetched.
    """
    name, _, source = text.partition("/")
    if not source:
        raise MmclError(f"{text}: name the weights too, '{name}/TAG'; the tags are: {_tags(name)}")
    config = model_config(name)
    if not _is_tag(name, source) and Path(source).expanduser().is_file():
        path = Path(source).expanduser()
        state, layout = read_state(path)
        _require_layout(name, config, path, layout)
        _take_sizes(config, state)
        towers = assemble(name, config, _with_weights(config, state, str(path)), {})
        source = str(path.resolve())
    else:
        towers = assemble(name, config, *pretrained_model(name, source, config, text))
    towers.name = f"{name}/{source}"
    return towers


def open_file(path: Path) -> Towers:
    """The model in a checkpoint file, by its tensors.

    Raises:
        MmclError: it fits no model of open_clip's, or several: the message has the names to write.
    """
    state, layout = read_state(path)
    if layout == "transformers":
        return open_transformers_file(path, state)
    if (path.parent / CONFIG).is_file():
        return open_folder(path.parent, path)
    names = candidates(state, layout)
    if len(names) != 1:
        raise ambiguous(path, names)
    config = model_config(names[0])
    return assemble(names[0], config, _with_weights(config, state, str(path)), {})


def open_folder(folder: Path, weights: Path | None = None) -> Towers:
    """The model in a folder with an ``open_clip_config.json``, as open_clip's ``local-dir:`` reads it.

    Raises:
        MmclError: something is missing or damaged.
    """
    try:
        description = read_json(folder / CONFIG)
        config = description["model_cfg"]
        found = weights or next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    except (OSError, KeyError, TypeError) as error:
        raise MmclError(f"{folder / CONFIG}: damaged ({type(error).__name__}: {error}); take a fresh copy") from None
    if found is None:
        raise MmclError(f"{folder}: the weights are missing; expected {' or '.join(_WEIGHTS[::2])}")
    state, layout = read_state(found)
    if layout == "transformers":
        raise MmclError(f"{found}: the weights are in transformers' layout, but beside them is {CONFIG}")
    clip = _with_weights(config, state, str(found))
    return assemble(folder.name, config, clip, description.get("preprocess_cfg") or {}, folder)


def open_hub(name: str) -> Towers:
    """The model ``org/name`` of the hub, in open_clip's format.

    Raises:
        MmclError: there is none, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    texts = ["open_clip_config.json", "*token*", "*.txt", "*.model", "vocab.json", "merges.txt"]
    try:
        # A repository often has the same weights twice: safetensors if there, else PyTorch's.
        folder = Path(snapshot_download(name, allow_patterns=[*texts, "open_clip*.safetensors"]))
        if not any((folder / weights).is_file() for weights in _WEIGHTS[:2]):
            folder = Path(snapshot_download(name, allow_patterns=[*texts, "open_clip*.bin"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise MmclError(f"hf-hub:{name}: not to be had from the hub ({first_line(error)})") from None
    if not (folder / CONFIG).is_file():
        raise MmclError(f"hf-hub:{name}: holds no {CONFIG}; without 'hf-hub:' it may open as a transformers model")
    towers = open_folder(folder)
    towers.name = f"hf-hub:{name}"
    return towers


def build_text_tower(config: TextTowerConfig) -> tuple[OpenClipTextProcessor, OpenClipTextTower]:
    """The text tower ``open_clip:NAME`` of a training config, behind the processor of its texts."""
    name = config.name.removeprefix("open_clip:")
    where = f"text tower '{config.name}'"
    if config.pooling is not None:
        raise MmclError(f"{where}: open_clip's text towers have a pooling of their own; remove model.text.pooling")
    settings = model_config(name)
    net = None
    if isinstance(config.pretrained, str):
        net = pretrained_model(name, config.pretrained, settings, where)[0].text
    half = tower_config(settings, "text_cfg")
    return create_text_tower(config.name, half, net, max_tokens=config.max_tokens)


def pretrained_model(
    name: str, source: str | bool, config: dict[str, Any], where: str
) -> tuple[Any, Mapping[str, Any]]:
    """The model ``config`` with the weights of a tag of ``name``'s, or of a file; and what the tag says of images.

    Raises:
        MmclError: there is no such tag, its weights were trained with the other activation (found before any
            download), or they cannot be fetched.
    """
    import open_clip

    if source is True:
        raise MmclError(f"{where}: 'pretrained' must name the weights; there are: {_tags(name)}")
    source = str(source)
    path = Path(source).expanduser()
    if not _is_tag(name, source) and path.is_file():
        state, layout = read_state(path)
        _require_layout(name, config, path, layout)
        return _with_weights(config, state, str(path)), {}
    _require_tag(name, source, where)
    tag = open_clip.get_pretrained_cfg(name, source)
    _require_activation(name, source, bool(tag.get("quick_gelu")))
    try:
        with quiet():
            path = Path(open_clip.download_pretrained(tag))
    except Exception as error:  # huggingface_hub's, urllib's and the file system's own
        raise MmclError(f"{name}/{source}: its weights cannot be fetched ({first_line(error)})") from None
    state, _ = read_state(path)
    return _with_weights(config, state, f"{name}/{source}"), tag


def assemble(
    name: str, config: Mapping[str, Any], clip: Any, preprocess: Mapping[str, Any], folder: Path | None = None
) -> Towers:
    """Towers of the two halves of an open_clip model.

    Args:
        name: of the model.
        config: open_clip's model_cfg.
        clip: what ``build_model`` made of it.
        preprocess: open_clip's preprocess_cfg, or as much of it as is known.
        folder: where the tokenizer's files may be.
    """
    dim = int(config["embed_dim"])
    called = f"open_clip:{name}"
    spec = {"library": "open_clip", "name": called, "config": tower_config(config, "vision_cfg")}
    images = _preprocessing(name, clip.visual, preprocess)
    texts, text = create_text_tower(called, tower_config(config, "text_cfg"), clip.text, folder)
    image = ImageTower(clip.visual, spec, images)
    no_head = HeadConfig(kind="none")
    embedders = {
        "image": ImageEmbedder(images, image, Head(no_head, image.width, dim)),
        "text": TextEmbedder(texts, text, Head(no_head, text.width, dim)),
    }
    towers = Towers(embedders, dim, name)
    towers.logit_scale = float(clip.logit_scale.detach())
    towers.logit_bias = None if clip.logit_bias is None else float(clip.logit_bias.detach())
    return towers


def colours(preprocess: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of a preprocess_cfg; OpenAI's where it says nothing."""
    import open_clip

    mean = preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = preprocess.get("std") or open_clip.OPENAI_DATASET_STD
    mean, std = (list(each) if isinstance(each, (list, tuple)) else [each] * 3 for each in (mean, std))
    if not len(mean) == len(std) == 3 or not all(isinstance(value, int | float) for value in (*mean, *std)):
        raise MmclError(f"preprocess_cfg: mean {mean} and std {std} are not numbers of three channels")
    return mean, std


def _preprocessing(name: str, visual: Any, preprocess: Mapping[str, Any]) -> ImageProcessor:
    """How an image becomes the net's input, in our own words."""
    sides = visual.image_size if isinstance(visual.image_size, (tuple, list)) else (visual.image_size,) * 2
    if sides[0] != sides[-1]:
        raise MmclError(f"{name}: takes images of {sides[0]} × {sides[-1]} pixels; only squares are supported")
    modes = {"shortest": "crop", "squash": "squash", "longest": "pad"}
    how, filter = preprocess.get("resize_mode") or "shortest", preprocess.get("interpolation") or "bicubic"
    if how not in modes:
        raise MmclError(f"{name}: its preprocess_cfg has the resize_mode '{how}'; {nearest(str(how), modes)}")
    if filter not in ("bicubic", "bilinear", "nearest"):
        raise MmclError(
            f"{name}: its preprocess_cfg has the interpolation '{filter}'; use bicubic, bilinear or nearest"
        )
    if how == "longest" and preprocess.get("fill_color") != 255:
        log.warning("%s: was trained on images padded with another colour than here, which is white", name)
    resize: Any = modes[how] + ("" if filter == "bicubic" else f"-{filter}")
    mean, std = colours(preprocess)
    return ImageProcessor(int(sides[0]), resize, mean, std)


def _with_weights(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Any:
    most = sum(tensor.nbytes for tensor in state.values())
    require_plausible(config, most, where)
    if "hf_model_name" not in config["text_cfg"]:  # whose config may come from the hub, which is asked once
        require_size(lambda: build_model(config), most, where)
    clip = build_model(config)
    fill(clip, state, where)
    return clip.eval()


def _take_sizes(config: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """A checkpoint keeps the image size and context length it was trained with, whatever the name's config says."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    patches, side = state.get("visual.positional_embedding"), vision.get("patch_size", 16)
    if patches is not None and side and isqrt(len(patches) - 1) ** 2 == len(patches) - 1:
        vision["image_size"] = isqrt(len(patches) - 1) * side
    pooled = state.get("visual.attnpool.positional_embedding")  # of a ResNet, which halves the image five times
    if pooled is not None:
        vision["image_size"] = isqrt(len(pooled) - 1) * 32
    words = state.get("positional_embedding", state.get("text.positional_embedding"))
    if words is not None and not text.get("embed_cls"):
        text["context_length"] = len(words)


def _require_layout(name: str, config: Mapping[str, Any], path: Path, layout: Layout) -> None:
    if layout == "transformers":
        raise MmclError(f"{name}/{path}: the file is in transformers' layout; open it by its folder, with config.json")
    if layout == "openai" and not config.get("quick_gelu"):
        raise MmclError(
            f"{name}/{path}: OpenAI's weights were trained with QuickGELU, and '{name}' computes GELU; use "
            f"'{name}{QUICK}/{path}'"
        )


def _require_activation(name: str, tag: str, quick: bool) -> None:
    import open_clip

    if bool(model_config(name).get("quick_gelu", False)) == quick:
        return
    other = name + QUICK if quick else name.removesuffix(QUICK)
    trained, built = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    cure = f"use '{other}/{tag}'" if other in open_clip.list_models() and other != name else "choose another tag"
    raise MmclError(f"{name}/{tag}: its weights were trained with {trained}, and '{name}' computes {built}; {cure}")


def _require_tag(name: str, tag: str, where: str) -> None:
    """Refuse what is no tag of ``name``; a tag of the same network with GELU is named as that."""
    import open_clip

    if _is_tag(name, tag):
        return
    plain = name.removesuffix(QUICK)
    if plain != name and _is_tag(plain, tag):
        _require_activation(name, tag, bool(open_clip.get_pretrained_cfg(plain, tag).get("quick_gelu")))
    if "/" in tag or Path(tag).suffix in (".pt", ".pth", ".bin", ".safetensors", ".ckpt"):
        raise MmclError(f"{where}: there is no file {tag}, and it is no tag of '{name}'")
    raise MmclError(f"{where}: '{name}' has no weights '{tag}'; there are: {_tags(name)}")


def _is_tag(name: str, tag: str) -> bool:
    import open_clip

    return bool(open_clip.is_pretrained_cfg(name, tag))


def _tags(name: str) -> str:
    import open_clip

    return ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
