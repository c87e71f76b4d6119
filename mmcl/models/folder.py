"""Model folders: written whole, checked when read, never unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import mmcl
from mmcl.config.model import HeadConfig
from mmcl.models import open_clip_models, transformers_clip
from mmcl.models.card import model_card
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.heads import Head
from mmcl.models.image_tower import ImageTower
from mmcl.models.pooling import POOLINGS
from mmcl.models.text_tower import TextTower, local_folder
from mmcl.models.transformers_nets import quiet_transformers
from mmcl.models.weights import load_weights, save_tensors
from mmcl.runtime.device import pick_device
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder

FORMAT_VERSION = 2  # 2: towers of whole CLIP models, described by their configs; all earlier ones are read
DESCRIPTION, WEIGHTS = "mmcl.json", "model.safetensors"


def load(name: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Open an encoder.

    Args:
        name: one of
            a model folder, or a run folder (its ``model/`` is taken);
            an open_clip model and the tag of its weights, ``ViT-B-32/laion2b_s34b_b79k``, or a checkpoint file of it,
            ``ViT-B-32/path/of/epoch_32.pt``;
            a checkpoint file alone, where its tensors tell the architecture;
            ``hf-hub:org/name``, or a folder with an ``open_clip_config.json``;
            a folder or hub name of a transformers ``CLIPModel`` or ``SiglipModel``, of a sentence-transformers or
            transformers text encoder, or ``sample:minilm``.
        device: where its weights go.

    Raises:
        MmclError: there is no such model, it is damaged, a newer mmcl wrote it, or the name computes another
            activation than its weights were trained with.
    """
    text = str(name)
    path = Path(text).expanduser()
    if text.startswith("hf-hub:"):
        encoder = open_clip_models.open_hub(text.removeprefix("hf-hub:"))
    elif path.is_file():
        encoder = open_clip_models.open_file(path)
        encoder.path = path
    elif _may_be_a_name(text) and open_clip_models.is_model_name(text):
        encoder = open_clip_models.open_named(text)
    else:
        encoder = _load_folder(text)
    return encoder.to(pick_device(str(device))).eval()


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
    elif (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        tower = TextTower.open(str(folder))
        head = Head(HeadConfig(kind="none"), tower.width, tower.width)
        encoder = Encoder({"text": Embedder(tower, head)}, tower.width, text)
    else:
        known = f"neither {DESCRIPTION} nor {open_clip_models.CONFIG} nor config.json"
        raise MmclError(f"{text}: the folder holds no model ({known})")
    encoder.path = folder
    return encoder


def _model_type(folder: Path) -> str | None:
    """What kind of model transformers' config says it is; a whole sentence-transformers folder is of no kind."""
    if not (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return None
    return read_json(folder / "config.json").get("model_type")


def save(encoder: Encoder, folder: Path) -> Path:
    """Write ``encoder`` as a model folder; see :meth:`Encoder.save`."""
    folder = folder.expanduser()
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise MmclError(f"{folder}: exists and is no model folder, so it is not replaced; choose another")
    description = {
        "format_version": FORMAT_VERSION,
        "mmcl_version": mmcl.__version__,
        "name": encoder.name,
        "dim": encoder.dim,
        "towers": {modality: _describe(encoder.embedder(modality)) for modality in sorted(encoder.modalities)},
        "logit_scale": encoder.logit_scale,
        "logit_bias": encoder.logit_bias,
        "card": encoder.card,
    }
    with atomic_folder(folder) as beside:
        if _suits_sentence_transformers(encoder):
            save_sentence_transformers(encoder.embedder("text"), beside)
        else:
            save_tensors(beside / WEIGHTS, encoder.embedders.state_dict())
            if "text" in encoder.modalities:
                cast(TextTower, encoder.embedder("text").tower).save_tokenizer(beside)
        if "image" in encoder.modalities:
            spec = cast(ImageTower, encoder.embedder("image").tower).spec
            _write_json(beside / "preprocessor_config.json", preprocessor(spec))
        _write_json(beside / DESCRIPTION, description)
        (beside / "README.md").write_text(model_card(encoder), encoding="utf-8")
    encoder.path = folder
    return folder


def _describe(embedder: Embedder) -> dict[str, Any]:
    tower = embedder.tower
    spec = tower.spec() if isinstance(tower, TextTower) else tower.spec
    return {"tower": spec, "head": embedder.head.config.model_dump()}


def _load_ours(folder: Path) -> Encoder:
    description = read_json(folder / DESCRIPTION)
    version = description.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise MmclError(
            f"{folder}: written by mmcl {description.get('mmcl_version', '?')} in format {version}, but this is "
            f"mmcl {mmcl.__version__}, which reads up to format {FORMAT_VERSION}; upgrade mmcl"
        )
    embedders = {}
    try:
        for modality, spec in description["towers"].items():
            if modality == "image":
                tower: ImageTower | TextTower = ImageTower.from_spec(spec["tower"])
            else:
                tower = TextTower.from_spec(spec["tower"], folder)
            embedders[modality] = Embedder(tower, Head(HeadConfig(**spec["head"]), tower.width, description["dim"]))
        encoder = Encoder(embedders, description["dim"], description["name"])
        encoder.card = description.get("card", {})
        encoder.logit_scale, encoder.logit_bias = (description.get(key) for key in ("logit_scale", "logit_bias"))
    except (KeyError, TypeError, ValueError) as error:
        raise MmclError(
            f"{folder / DESCRIPTION}: damaged ({type(error).__name__}: {error}); take a fresh copy"
        ) from None
    if _suits_sentence_transformers(encoder):
        _load_sentence_transformers_weights(encoder, folder)
    else:
        load_weights(encoder.embedders, folder / WEIGHTS)
    return encoder


def _suits_sentence_transformers(encoder: Encoder) -> bool:
    """Text alone, pooled in a way that library knows."""
    if encoder.modalities != {"text"}:
        return False
    return cast(TextTower, encoder.embedder("text").tower).pooling in POOLINGS


def save_sentence_transformers(embedder: Embedder, folder: Path) -> None:
    """transformers' own files, and the small files by which sentence-transformers finds pooling and head."""
    tower = cast(TextTower, embedder.tower)
    with quiet_transformers():
        tower.net.save_pretrained(folder)
    tower.save_tokenizer(folder)
    modules = ["Transformer:", "Pooling:1_Pooling", "Normalize:2_Normalize"]
    names = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}
    pooling: dict[str, Any] = {"word_embedding_dimension": tower.width}
    pooling |= {f"pooling_mode_{key}": key == names[tower.pooling] for key in names.values()}
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    linear = embedder.head.linear_layers()
    for number, layer in enumerate(linear, start=2):
        name = f"{number}_Dense"
        (folder / name).mkdir()
        activation = "torch.nn.modules.linear.Identity" if layer is linear[-1] else "torch.nn.modules.activation.GELU"
        settings = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": activation,
        }
        _write_json(folder / name / "config.json", settings)
        save_tensors(folder / name / WEIGHTS, {f"linear.{key}": value for key, value in layer.state_dict().items()})
        modules.insert(-1, f"Dense:{name}")
    modules[-1] = f"Normalize:{len(modules) - 1}_Normalize"
    (folder / f"{len(modules) - 1}_Normalize").mkdir()
    listing = []
    for index, module in enumerate(modules):
        kind, path = module.split(":")
        kind = f"sentence_transformers.models.{kind}"
        listing.append({"idx": index, "name": str(index), "path": path, "type": kind})
    _write_json(folder / "modules.json", listing)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": tower.max_tokens, "do_lower_case": False})
    _write_json(
        folder / "config_sentence_transformers.json", {"prompts": tower.prompts, "similarity_fn_name": "cosine"}
    )


def _load_sentence_transformers_weights(encoder: Encoder, folder: Path) -> None:
    embedder = encoder.embedder("text")
    load_weights(embedder.tower.net, folder / WEIGHTS)
    linear = embedder.head.linear_layers()
    for number, layer in enumerate(linear, start=2):
        load_weights(nn.ModuleDict({"linear": layer}), folder / f"{number}_Dense" / WEIGHTS)


def preprocessor(spec: dict[str, Any]) -> dict[str, Any]:
    """The picture's way to pixels by an image tower's spec, in the vocabulary of transformers' image processors."""
    crop = spec["resize"].startswith("crop")
    side = {"height": spec["size"], "width": spec["size"]}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": spec["size"]} if crop else side,
        "resample": 2 if spec["resize"].endswith("-bilinear") else 3,
        "do_center_crop": crop,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": spec["mean"],
        "image_std": spec["std"],
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        MmclError: it is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MmclError(f"{path}: damaged ({error}); take a fresh copy") from None
    if not isinstance(values, dict):
        raise MmclError(f"{path}: damaged (not a JSON object); take a fresh copy")
    return values


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
