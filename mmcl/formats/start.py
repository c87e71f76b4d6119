"""A model to start training from: ``model.name`` of a config, and what its sections may then change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmcl.config.data import ImageConfig
from mmcl.config.model import ImageTowerConfig, ModelConfig, TableTowerConfig, TowerConfig
from mmcl.config.section import Section
from mmcl.formats.open import open_model
from mmcl.formats.towers.image_size import resize_image_tower
from mmcl.models.activations import checkpoint_activations, drop_patches
from mmcl.models.embedder import Embedder
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

_MAY_CHANGE = {
    "image": ("frozen", "freeze_blocks", "lora", "checkpointing", "patch_dropout", "head"),
    "table": ("frozen", "head"),
    "text": ("frozen", "freeze_blocks", "lora", "checkpointing", "max_tokens", "pooling", "prompts", "head"),
}


def start_from(config: ModelConfig, image: ImageConfig, towers: Mapping[str, str]) -> Towers:
    """The towers to train from the model that ``config.name`` names, with what their sections change.

    A tower starts from the model's tower of that name, or from its only one of that modality. Several that start from
    the same one are copies of it, which part in training.

    Frozen towers are frozen here; ``freeze_blocks`` and ``lora`` are left to the caller, as for new towers.

    Args:
        config: with a ``name``.
        image: ``data.image``; what of it is set has to agree with the model, but for the size, to which its tower is
            brought.
        towers: name of each tower of the method to its modality.

    Raises:
        MmclError: there is no such model, it has no such tower, or a section sets what the model has already.
    """
    assert config.name is not None, "the caller looks"
    for name in towers:
        _refuse_settings_of_new_towers(config, name)
    model = open_model(config.name)
    if "dim" in _changed(config) and config.dim != model.width:
        raise MmclError(f"model.dim is {config.dim}, but '{config.name}' embeds into {model.width}; leave it out")
    sources = {name: _source(model, name, modality, config) for name, modality in towers.items()}
    starts = {name: model.embedder(source) for name, source in sources.items()}
    if len(set(sources.values())) < len(sources):  # copied before a section changes one of them
        starts = {name: copy.deepcopy(embedder) for name, embedder in starts.items()}
    embedders = {name: _adapted(embedder, config, name, image) for name, embedder in starts.items()}
    start = Towers(embedders, model.width, config.name)
    start.logit_scale, start.logit_bias = model.logit_scale, model.logit_bias
    start.heads = model.heads
    return start


def _source(model: Towers, name: str, modality: str, config: ModelConfig) -> str:
    """The tower that the one called ``name`` starts from."""
    found = model.of_modality(modality)
    if name not in found and len(found) > 1:
        raise MmclError(
            f"{config.where(name)}: '{config.name}' has several {modality} towers; call it {' or '.join(found)}"
        )
    return name if name in found else model.resolve(modality)


def _adapted(embedder: Embedder, config: ModelConfig, name: str, image: ImageConfig) -> Embedder:
    """A tower of the model as its section wants it."""
    section, where, model = config.tower(name) or TowerConfig(), config.where(name), str(config.name)
    if isinstance(embedder, ImageEmbedder):
        embedder = _adapt_image(embedder, section, image, where, model)
    elif isinstance(embedder, TextEmbedder):
        _adapt_text(embedder, section, where, model)
    if section.checkpointing:
        checkpoint_activations(embedder.tower.net, f"{where}.checkpointing: '{model}'")
    if "dropout" in _changed(section.head):
        embedder.head.set_dropout(section.head.dropout)
    return type(embedder)(embedder.processor, embedder.tower, embedder.head, frozen=section.frozen)


def _refuse_settings_of_new_towers(config: ModelConfig, name: str) -> None:
    section, where = config.tower(name), config.where(name)
    if section is None:
        return
    kinds = {ImageTowerConfig: "image", TableTowerConfig: "table"}
    modality = next((name for kind, name in kinds.items() if isinstance(section, kind)), "text")
    wrong = sorted(_changed(section) - {"modality", *_MAY_CHANGE[modality]})
    if "head" in _changed(section):
        wrong += sorted(f"head.{key}" for key in _changed(section.head) - {"dropout"})
    if wrong:
        settings = ", ".join(f"{where}.{key}" for key in wrong)
        raise MmclError(
            f"{settings}: '{config.name}' is a model and has its own; leave it out, or leave out model.name"
        )


def _changed(section: Section) -> set[str]:
    """The settings that differ from their defaults: a run's own config.yaml names the others as well."""
    fields = type(section).model_fields
    return {
        key
        for key in section.model_fields_set
        if getattr(section, key) != fields[key].get_default(call_default_factory=True)
    }


def _adapt_image(embedder: ImageEmbedder, section: Any, image: ImageConfig, where: str, name: str) -> ImageEmbedder:
    processor, tower = embedder.processor, embedder.tower
    if "size" in _changed(image) and image.size != processor.size:
        processor, tower = resize_image_tower(processor, tower, image.size, name)
    processor.exact_decoding |= image.exact_decoding
    for key in sorted(_changed(image) - {"exact_decoding", "root", "stored"}):  # which say nothing of the square
        wanted, own = getattr(image, key), getattr(processor, key)
        if wanted != own and not (key == "resize" and str(own).startswith(wanted)):
            raise MmclError(f"data.image.{key} is {wanted}, but '{name}' takes {own}; leave it out")
    if rate := getattr(section, "patch_dropout", 0.0):
        drop_patches(tower.net, rate, processor.size, f"{where}.patch_dropout: '{name}'")
    return ImageEmbedder(processor, tower, embedder.head)


def _adapt_text(embedder: TextEmbedder, section: Any, where: str, name: str) -> None:
    processor, tower = embedder.processor, embedder.tower
    limit = getattr(section, "max_tokens", None)
    if limit is not None and limit > processor.max_tokens:
        raise MmclError(f"{where}.max_tokens is {limit}, but '{name}' reads at most {processor.max_tokens}")
    processor.max_tokens = limit or processor.max_tokens
    pooling, width = getattr(section, "pooling", None), tower.width
    if pooling not in (None, tower.pooling):
        if tower.pooling == "pooled":
            raise MmclError(f"{where}.pooling: '{name}' has a pooling of its own; leave it out")
        tower.set_pooling(pooling)
        if tower.width != width:
            raise MmclError(f"{where}.pooling: '{name}' reads {width} features, but {pooling} gives {tower.width}")
    if (prompts := getattr(section, "prompts", None)) is not None:
        processor.replace_prompts(prompts)
