"""CLIP and its kin in transformers' format: models of an image and a text half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmcl.config.model import HeadConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.formats.plausible import require_plausible, require_size, weights_bytes
from mmcl.formats.tensor_files import require_finite
from mmcl.formats.tokenizers import read_tokenizer
from mmcl.formats.transformers.architectures import named_class
from mmcl.formats.transformers.image_processors import default_processor, preprocessing, read_processor
from mmcl.formats.transformers.nets import opening, read_config
from mmcl.formats.transformers.vision import vision_spec
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import count_positions, tightest
from mmcl.models.text.padding import Padding
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError


class Half(NamedTuple):
    """One half of a model.

    Attributes:
        net: gives features.
        projection: from these to the shared space; None where ``net`` holds it, or there is none.
    """

    net: Any
    projection: nn.Linear | None = None


@dataclass(frozen=True)
class Family:
    """How a model type of transformers is taken apart.

    Attributes:
        model: the class of both halves.
        halves: takes the image half and the text half out of it.
        pooling: of the text half.
        reads_padding: whether the text half reads the last of all its positions, padding or not.
    """

    model: str
    halves: Callable[[Any], tuple[Half, Half]]
    pooling: str = "pooled"
    reads_padding: bool = False


def _with_projections(model: Any) -> tuple[Half, Half]:
    """transformers has a class for either half together with its projection, such as CLIPVisionModelWithProjection."""
    prefix = type(model).__name__.removesuffix("Model")
    vision_config, text_config = model.config.vision_config, model.config.text_config
    vision_config.projection_dim = text_config.projection_dim = model.config.projection_dim
    with torch.device("meta"):  # every part of them is replaced
        image = named_class(f"{prefix}VisionModelWithProjection")(vision_config)
        text = named_class(f"{prefix}TextModelWithProjection")(text_config)
    image.vision_model, image.visual_projection = model.vision_model, model.visual_projection
    text.text_model, text.text_projection = model.text_model, model.text_projection
    return Half(image.eval()), Half(text.eval())


def _without_projections(model: Any) -> tuple[Half, Half]:
    """The halves' own vectors are the features."""
    return Half(model.vision_model), Half(model.text_model)


def _projected(model: Any) -> tuple[Half, Half]:
    """Any two networks, each with a projection of the model's."""
    return Half(model.vision_model, model.visual_projection), Half(model.text_model, model.text_projection)


def _projected_bert(model: Any) -> tuple[Half, Half]:
    """Chinese-CLIP's text half is a BERT in all but its class, which transformers neither opens nor runs alone."""
    from transformers import BertConfig, BertModel

    image, (text, projection) = _projected(model)
    described = {key: value for key, value in text.config.to_dict().items() if key != "model_type"}
    net = BertModel(BertConfig(**described))
    if pooler := net.pooler:  # of which the model has none: the same each time
        nn.init.zeros_(pooler.dense.weight)
    net.load_state_dict(text.state_dict(), strict=False)
    return image, Half(net.eval(), projection)


FAMILIES = {
    "clip": Family("CLIPModel", _with_projections),
    "metaclip_2": Family("MetaClip2Model", _with_projections),
    "siglip": Family("SiglipModel", _without_projections, reads_padding=True),
    "siglip2": Family("Siglip2Model", _without_projections, reads_padding=True),  # NaFlex; others are siglip
    "chinese_clip": Family("ChineseCLIPModel", _projected_bert, pooling="cls"),
    "vision-text-dual-encoder": Family("VisionTextDualEncoderModel", _projected),
}
"""By the model type that the ``config.json`` says."""


def is_of_two_halves(model_type: str) -> bool:
    """Whether transformers knows a model type, and it is one of images and texts together, openable or not."""
    from transformers import AutoConfig

    if model_type in FAMILIES:
        return True
    try:
        config = AutoConfig.for_model(model_type)
    except ValueError:
        return False
    return not hasattr(config, "vocab_size") and hasattr(config, "vision_config") and hasattr(config, "text_config")


def open_folder(folder: Path, name: str, state: Mapping[str, Tensor] | None = None) -> Towers:
    """The model in a transformers folder whose ``config.json`` says one of :data:`FAMILIES`.

    Args:
        folder: with configs and tokenizer.
        name: for messages.
        state: weights to use instead of the folder's.

    Raises:
        MmclError: something is missing or damaged, or it is a model of another type.
    """
    config = read_config(folder, name)
    if config.model_type not in FAMILIES:
        known = ", ".join(family.model for family in FAMILIES.values())
        raise MmclError(
            f"{name}: a '{config.model_type}' model is of images and texts, but of such models only {known} are read; "
            "choose one of these"
        )
    tokenizer = read_tokenizer(folder)
    with opening(f"{name}: cannot be opened as a transformers model", folder if state is None else None):
        kind = named_class(FAMILIES[config.model_type].model)
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
    """Towers of the two halves of a model of :data:`FAMILIES`, their projections included.

    Args:
        name: of the model.
        model: both halves.
        tokenizer: its tokenizer.
        processor: its image processor; None for the one of its kind.

    Raises:
        MmclError: the image processor cannot be followed, or a half gives no vector.
    """
    family = FAMILIES[model.config.model_type]
    image_half, text_half = family.halves(model)
    images = preprocessing(processor or default_processor(model.config, name), name)
    image = ImageTower(image_half.net, vision_spec(image_half.net, name, "pooled"), images)
    # SigLIP gets a mask only where its tokenizer gives one.
    masked = not family.reads_padding or "attention_mask" in tokenizer.model_input_names
    limit = tightest(count_positions(text_half.net), tokenizer.model_max_length)
    padding = Padding(limit if family.reads_padding else 0, masked=masked)
    texts = TextProcessor(tokenizer, max_tokens=limit)
    text = TextTower(text_half.net, texts, pooling=family.pooling, padding=padding)
    embedders = {
        "image": ImageEmbedder(images, image, _head(image.width, image_half.projection)),
        "text": TextEmbedder(texts, text, _head(text.width, text_half.projection)),
    }
    towers = Towers(embedders, embedders["image"].head.dim, name)
    towers.logit_scale = float(model.logit_scale.detach())
    towers.logit_bias = float(model.logit_bias.detach()) if hasattr(model, "logit_bias") else None
    return towers


def _head(width: int, projection: nn.Linear | None) -> Head:
    """``projection`` as a head; the one that keeps the features without."""
    if projection is None:
        return Head(HeadConfig(kind="none"), width, width)
    head = Head(HeadConfig(kind="linear"), width, projection.out_features)
    head.linear_layers()[0].load_state_dict(projection.state_dict())
    return head


def _safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
