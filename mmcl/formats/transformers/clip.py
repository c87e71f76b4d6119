"""CLIP and SigLIP models in transformers' format: ``CLIPModel`` and ``SiglipModel``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcl.config.model import HeadConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.formats.plausible import require_plausible, require_size, weights_bytes
from mmcl.formats.tensor_files import require_finite
from mmcl.formats.tokenizers import read_tokenizer
from mmcl.formats.transformers.image_processors import default_processor, preprocessing, read_processor
from mmcl.formats.transformers.nets import opening, read_config
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import tightest
from mmcl.models.text.padding import Padding
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
MODEL_TYPES = ("clip", "siglip")


def open_folder(folder: Path, name: str, state: Mapping[str, Tensor] | None = None) -> Towers:
    """The model in a transformers folder whose ``config.json`` says ``clip`` or ``siglip``.

    Args:
        folder: with configs and tokenizer.
        name: for messages.
        state: weights to use instead of the folder's.

    Raises:
        MmclError: something is missing or damaged.
    """
    from transformers import CLIPModel, SiglipModel

    config = read_config(folder, name)
    tokenizer = read_tokenizer(folder)
    with opening(f"{name}: cannot be opened as a transformers model", folder if state is None else None):
        kind = {"clip": CLIPModel, "siglip": SiglipModel}[config.model_type]
        source = {"state_dict": dict(state)} if state is not None else {"use_safetensors": _safetensors(folder)}
        most = weights_bytes(folder) if state is None else sum(tensor.nbytes for tensor in state.values())
        require_plausible(config.to_dict(), most, folder)
        require_size(lambda: kind(config), most, folder)
        model, report = kind.from_pretrained(
            None if state is not None else folder,
            trust_remote_code=False,
            config=config,
            dtype=torch.float32,
            weights_only=True,
            output_loading_info=True,
            **source,
        )
    require_finite(model.named_parameters(), folder)
    if missing := sorted(report["missing_keys"]):
        raise MmclError(f"{name}: its weights lack {missing[0]} and {len(missing) - 1} more; take a fresh copy")
    return assemble(name, model.eval(), tokenizer, read_processor(folder, name))


def open_file(path: Path, state: Mapping[str, Tensor]) -> Towers:
    """The model in a checkpoint file of transformers' layout, by the configs beside it.

    Raises:
        MmclError: there are none.
    """
    if not (path.parent / "config.json").is_file():
        raise MmclError(
            f"{path}: the file is in transformers' layout; put the model's config.json and tokenizer files beside it"
        )
    return open_folder(path.parent, str(path), state)


def assemble(name: str, model: Any, tokenizer: Any, processor: Any) -> Towers:
    """Towers of the two halves of a ``CLIPModel`` or ``SiglipModel``, their projections included.

    Args:
        name: of the model.
        model: both halves.
        tokenizer: its tokenizer.
        processor: its image processor; None for the one of its kind.
    """
    siglip = model.config.model_type == "siglip"
    image_net, text_net = (model.vision_model, model.text_model) if siglip else _projected(model)
    spec = {"library": "transformers", "name": name, "architecture": type(image_net).__name__, "vector": "pooled"}
    processor = processor or default_processor(model.config.model_type, model.config.vision_config.image_size)
    images = preprocessing(processor, name)
    image = ImageTower(image_net, {**spec, "config": image_net.config.to_diff_dict()}, images)
    # SigLIP reads the last of 64 positions, padding or not; a mask only where its tokenizer gives one.
    masked = not siglip or "attention_mask" in tokenizer.model_input_names
    limit = tightest(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    padding = Padding(limit if siglip else 0, masked=masked)
    texts = TextProcessor(tokenizer, max_tokens=limit)
    text = TextTower(text_net, texts, pooling="pooled", padding=padding)
    no_head = HeadConfig(kind="none")
    embedders = {
        "image": ImageEmbedder(images, image, Head(no_head, image.width, image.width)),
        "text": TextEmbedder(texts, text, Head(no_head, text.width, image.width)),
    }
    towers = Towers(embedders, image.width, name)
    towers.logit_scale = float(model.logit_scale.detach())
    towers.logit_bias = float(model.logit_bias.detach()) if siglip else None
    return towers


def _projected(model: Any) -> tuple[Any, Any]:
    """The halves of a ``CLIPModel`` as transformers' classes for either half with its projection."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    vision_config, text_config = model.config.vision_config, model.config.text_config
    vision_config.projection_dim = text_config.projection_dim = model.config.projection_dim
    with torch.device("meta"):  # every part of them is replaced
        image_net, text_net = CLIPVisionModelWithProjection(vision_config), CLIPTextModelWithProjection(text_config)
    image_net.vision_model, image_net.visual_projection = model.vision_model, model.visual_projection
    text_net.text_model, text_net.text_projection = model.text_model, model.text_projection
    return image_net.eval(), text_net.eval()


def _safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
