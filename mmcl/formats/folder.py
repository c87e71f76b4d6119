"""Model folders: written whole, checked when read, never unpickled."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from mmcl.encoding.encoder import Encoder
from mmcl.formats.card import TRAINING_HEAD, model_card
from mmcl.formats.lora import ADAPTER, adapter_base, adapts_itself, merge_adapter
from mmcl.formats.open_clip import models as open_clip_models
from mmcl.formats.plausible import require_plausible, weights_bytes
from mmcl.formats.sentence_transformers import write as writer
from mmcl.formats.sentence_transformers.read import (
    MODULES,
    Conventions,
    SentenceTransformersSettings,
    read_settings,
    read_token_weights,
)
from mmcl.formats.tensor_files import require_finite, require_readable_weights
from mmcl.formats.transformers import clip as transformers_clip
from mmcl.formats.transformers.nets import count_positions, local_folder, tightest
from mmcl.formats.weights import full_disk_is_oserror, load_weights, save_tensors
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tokenize import read_tokenizer
from mmcl.models.text.tower import TextTower
from mmcl.runtime.device import pick_device
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.files import as_path, atomic_folder, folder_to_write, read_json, write_json
from mmcl.runtime.version import __version__

log = logging.getLogger("mmcl")

# 2: towers of whole CLIP models, described by their configs. 3: heads of any dense layers, training heads, prompts
# left out of the pooling. All earlier ones are read.
FORMAT_VERSION = 3
DESCRIPTION, WEIGHTS = "mmcl.json", "model.safetensors"


def load(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    backend: str = "torch",
    exact_decoding: bool | None = None,
) -> Encoder:
    """Open an encoder.

    Args:
        name: one of
            a model folder, or a run folder (its ``model/`` is taken);
            an open_clip model and the tag of its weights, ``ViT-B-32/laion2b_s34b_b79k``, or a checkpoint file of it,
            ``ViT-B-32/path/of/epoch_32.pt``;
            a checkpoint file alone, where its tensors tell the architecture;
            ``hf-hub:org/name``, or a folder with an ``open_clip_config.json``;
            a folder or hub name of a transformers ``CLIPModel`` or ``SiglipModel``, of a sentence-transformers or
            transformers text encoder, of LoRA adapters for one as peft saves them, or ``sample:minilm``.
        device: where its weights go; ``auto`` is a GPU where there is one, as on the command line.
        dtype: what ``encode`` computes in: ``float32``, ``bfloat16``, or ``auto`` for bfloat16 where the hardware
            multiplies it natively. A ``backend`` other than torch computes texts in a precision of its own.
        backend: what ``encode`` runs texts with: ``torch``; ``onnx`` or ``openvino``, or their quantised forms
            ``onnx-int8`` and ``openvino-int8``, from the extras of these names.
        exact_decoding: decode large JPEG files at their full size, see :attr:`Encoder.exact_decoding`; as the model
            was trained if None.

    Raises:
        MmclError: there is no such model, it is damaged, a newer mmcl wrote it, the name computes another activation
            than its weights were trained with, or ``dtype`` or ``backend`` cannot be had.
    """
    text = str(name)
    place = pick_device(str(device))
    try:
        encoder = _open(text)
    except MmclError:
        raise
    except PermissionError as error:
        raise MmclError(f"{error.filename or text}: there is no permission to read it; ask its owner") from None
    except Exception as error:
        # Four libraries build networks from what the files say, and check little of it. A full disk is not their fault.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MmclError(f"{text}: damaged, or of a kind that cannot be opened ({first_line(error)})") from error
    require_finite(encoder.embedders.named_parameters(), text)
    encoder = encoder.to(place).eval()
    encoder.set_compute(dtype)
    if exact_decoding is not None:
        encoder.exact_decoding = exact_decoding
    if backend == "torch":
        return encoder
    if dtype == "bfloat16" and encoder.modalities == {"text"}:
        raise MmclError(f"dtype bfloat16: the backend '{backend}' computes in a precision of its own; leave dtype out")
    from mmcl.formats.onnx.backends import open_backend

    return open_backend(encoder, backend)


def _open(text: str) -> Encoder:
    if text.startswith("hf-hub:"):
        return open_clip_models.open_hub(text.removeprefix("hf-hub:"))
    path = as_path(text)
    if path.is_file():
        encoder = open_clip_models.open_file(path)
        encoder.path = path
        return encoder
    if _may_be_a_name(text) and open_clip_models.is_model_name(text):
        return open_clip_models.open_named(text)
    return _load_folder(text)


def _may_be_a_name(text: str) -> bool:
    return not Path(text).expanduser().is_dir() and not text.startswith((".", "/", "~", "runs/", "sample:"))


def _load_folder(text: str) -> Encoder:
    """A folder of any kind that we know, or the snapshot of a hub name."""
    is_path = text.startswith((".", "/", "~", "runs/")) or text.count("/") > 1
    if is_path and not Path(text).expanduser().is_dir():
        raise MmclError(f"{text}: there is no such folder; give a model folder, a run folder or a hub name")
    folder = local_folder(text)
    if (folder / "model" / DESCRIPTION).is_file():
        folder = folder / "model"
    if (folder / DESCRIPTION).is_file():
        encoder = _load_ours(folder)
    elif (folder / open_clip_models.CONFIG).is_file():
        encoder = open_clip_models.open_folder(folder)
    elif _model_type(folder) in transformers_clip.MODEL_TYPES:
        encoder = transformers_clip.open_folder(folder, text)
    elif any((folder / name).is_file() for name in ("config.json", MODULES, ADAPTER)):
        encoder = _open_text(folder, text)
    else:
        if snapshots := sorted(folder.glob("snapshots/*/")):  # the hub's cache of one model, rather than the model
            raise MmclError(f"{text}: keeps a model of the hub; give the folder of one snapshot, {snapshots[-1]}")
        known = f"neither {DESCRIPTION} nor {open_clip_models.CONFIG} nor config.json"
        raise MmclError(f"{text}: the folder holds no model ({known})")
    encoder.path = folder
    return encoder


def _model_type(folder: Path) -> str | None:
    """What kind of model transformers' config says it is; a whole sentence-transformers folder is of no kind."""
    if not (folder / "config.json").is_file() or (folder / MODULES).is_file():
        return None
    return read_json(folder / "config.json").get("model_type")


def _open_text(folder: Path, name: str) -> Encoder:
    """A text encoder of sentence-transformers or transformers, or adapters for one."""
    settings = read_settings(folder)
    if (base := adapter_base(folder / settings.transformer)) is not None:
        if adapts_itself(folder / settings.transformer, base):
            raise MmclError(f"{folder}: its adapters are for models that are adapters for it in turn; name their base")
        if not (folder / MODULES).is_file():
            return _open_adapters(folder, base, name)
        tower = _adapted_tower(folder / settings.transformer, base, settings)
    else:
        tower = TextTower.open(str(folder))
    for dense in settings.dense[:1]:
        if dense.inputs != tower.width:
            raise MmclError(f"{dense.folder}: reads {dense.inputs} features, but the pooling gives {tower.width}")
    head = Head.from_layers(tower.width, [dense.layer for dense in settings.dense])
    for dense, linear in zip(settings.dense, head.linear_layers(), strict=True):
        dense.load_into(linear)
    encoder = Encoder({"text": Embedder(tower, head)}, _dim(head, tower.width), name)
    encoder.conventions = conventions = settings.conventions
    if encoder.dim < encoder.width:
        log.info("%s: its vectors are cut to the first %d of %d dimensions", name, encoder.dim, encoder.width)
    if conventions.similarity != "cosine" and not conventions.normalize:
        log.warning("%s: its vectors are compared by %s: encode(normalize=False)", name, conventions.similarity)
    return encoder


def _open_adapters(folder: Path, base: str, name: str) -> Encoder:
    """What peft alone saved: the base says how to pool, and adapters change nothing but its weights."""
    encoder = _load_folder(base)
    merge_adapter(encoder.embedder("text").tower.net, folder)
    encoder.name = name
    return encoder


def _adapted_tower(source: Path, base: str, settings: SentenceTransformersSettings) -> TextTower:
    """The tower of a sentence-transformers folder that holds adapters instead of a transformer."""
    tower = cast(TextTower, _load_folder(base).embedder("text").tower)
    merge_adapter(tower.net, source)
    tokenizer = read_tokenizer(source) if (source / "tokenizer_config.json").is_file() else tower.tokenizer
    weighted = settings.token_weights
    return TextTower(
        tower.net,
        tokenizer,
        token_weights=None if weighted is None else TokenWeights.of(read_token_weights(weighted)),
        pooling=settings.pooling,
        max_tokens=tightest(settings.max_tokens or tokenizer.model_max_length, count_positions(tower.net)),
        prompts=settings.prompts,
        default_prompt=settings.default_prompt,
        include_prompt=settings.include_prompt,
        lowercase=settings.lowercase,
    )


def _dim(head: Head, width: int) -> int:
    """How many dimensions ``head`` gives for ``width`` features."""
    return head.layers[-1].width if head.layers else width


def save(encoder: Encoder, folder: Path) -> Path:
    """Write ``encoder`` as a model folder; see :meth:`Encoder.save`."""
    folder = folder.expanduser()
    if folder_to_write(folder).exists() and not (folder / DESCRIPTION).is_file() and any(folder.iterdir()):
        raise MmclError(f"{folder}: exists and is no model folder, so it is not replaced; choose another")
    description = {
        "format_version": FORMAT_VERSION,
        "mmcl_version": __version__,
        "name": encoder.name,
        "dim": encoder.width,
        "conventions": asdict(encoder.conventions),
        "towers": {modality: _describe(encoder.embedder(modality)) for modality in sorted(encoder.modalities)},
        "logit_scale": encoder.logit_scale,
        "logit_bias": encoder.logit_bias,
        "card": encoder.card,
    }
    with atomic_folder(folder) as beside, full_disk_is_oserror(folder):
        if (training := encoder.training_head) is not None:
            linear = training.linear_layers()
            description["training_head"] = {
                "dim": linear[-1].out_features if linear else encoder.width,
                **training.spec(),
            }
            save_tensors(beside / TRAINING_HEAD, training.state_dict())
        if encoder.modalities == {"text"} and not writer.cannot_express(encoder.embedder("text")):
            writer.write(encoder, beside)
        else:
            save_tensors(beside / WEIGHTS, encoder.embedders.state_dict())
            if "text" in encoder.modalities:
                cast(TextTower, encoder.embedder("text").tower).save_tokenizer(beside)
        if "image" in encoder.modalities:
            spec = cast(ImageTower, encoder.embedder("image").tower).spec
            write_json(beside / "preprocessor_config.json", preprocessor(spec))
        write_json(beside / DESCRIPTION, description)
        (beside / "README.md").write_text(model_card(encoder), encoding="utf-8")
    encoder.path = folder
    return folder


def _describe(embedder: Embedder) -> dict[str, Any]:
    tower = embedder.tower
    spec = tower.spec() if isinstance(tower, TextTower) else tower.spec
    return {"tower": spec, "head": embedder.head.spec()}


def _load_ours(folder: Path) -> Encoder:
    description = read_json(folder / DESCRIPTION)
    require_readable_weights(folder)
    version = description.get("format_version", 0)
    if not isinstance(version, int):
        raise MmclError(f"{folder / DESCRIPTION}: damaged (format_version is {version!r:.60}); take a fresh copy")
    if version > FORMAT_VERSION:
        raise MmclError(
            f"{folder}: written by mmcl {description.get('mmcl_version', '?')} in format {version}, but this is "
            f"mmcl {__version__}, which reads up to format {FORMAT_VERSION}; upgrade mmcl"
        )
    embedders = {}
    try:
        sizes = [description["dim"], description["towers"], description.get("training_head")]
        require_plausible({"dim": sizes[0], "towers": sizes[1:]}, weights_bytes(folder), folder / DESCRIPTION)
        for modality, spec in description["towers"].items():
            if modality not in ("image", "text"):
                raise ValueError(f"there is no tower '{modality}'")
            if modality == "image":
                tower: ImageTower | TextTower = ImageTower.from_spec(spec["tower"])
            else:
                tower = TextTower.from_spec(spec["tower"], folder)
            embedders[modality] = Embedder(tower, Head.from_spec(spec["head"], tower.width, description["dim"]))
        encoder = Encoder(embedders, description["dim"], description["name"])
        encoder.conventions = Conventions(**description.get("conventions", {}))
        encoder.card = description.get("card", {})
        encoder.logit_scale, encoder.logit_bias = (description.get(key) for key in ("logit_scale", "logit_bias"))
        if training := description.get("training_head"):
            dim = training.pop("dim")
            encoder.training_head = Head.from_spec(training, encoder.width, dim)
        _check_values(encoder)
    except MmclError:
        raise
    except Exception as error:  # what a network's constructor meets in a value of another kind or size
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise MmclError(f"{folder / DESCRIPTION}: damaged ({reason}); take a fresh copy") from None
    if (folder / MODULES).is_file():
        writer.read_weights(encoder.embedder("text"), folder)
    else:
        load_weights(encoder.embedders, folder / WEIGHTS)
    if encoder.training_head is not None:
        load_weights(encoder.training_head, folder / TRAINING_HEAD)
    return encoder


def _check_values(encoder: Encoder) -> None:
    """What nothing else looks at before it is used."""
    if not isinstance(encoder.name, str) or not isinstance(encoder.card, dict):
        raise TypeError("name is no text, or card no object")
    for key in ("logit_scale", "logit_bias"):
        if (value := getattr(encoder, key)) is not None and not math.isfinite(value):
            raise ValueError(f"{key} is {value}")


def preprocessor(spec: dict[str, Any]) -> dict[str, Any]:
    """The picture's way to pixels by an image tower's spec, in the vocabulary of transformers' image processors."""
    how, *_ = mode = spec["resize"].split("-")
    side = next((int(part) for part in mode if part.isdecimal()), spec["size"])
    resampling = next(
        (Image.Resampling[part.upper()] for part in mode if part.upper() in Image.Resampling.__members__), 3
    )
    square, cut = {"height": spec["size"], "width": spec["size"]}, how in ("crop", "keep") or side != spec["size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": how != "keep",
        "size": {"shortest_edge": side} if how == "crop" else {"height": side, "width": side},
        "resample": int(resampling),
        "do_center_crop": cut,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": spec["mean"],
        "image_std": spec["std"],
    }
