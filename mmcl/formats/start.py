"""A model to start training from: ``model.name`` of a config, and what its sections may then change."""

from __future__ import annotations

from typing import Any

from mmcl.config.data import ImageConfig
from mmcl.config.model import ModelConfig, TowerConfig
from mmcl.config.section import Section
from mmcl.formats.open import open_model
from mmcl.models.activations import checkpoint_activations, drop_patches
from mmcl.models.embedder import Embedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

_MAY_CHANGE = {
    "image": ("frozen", "freeze_blocks", "lora", "checkpointing", "patch_dropout", "head"),
    "text": ("frozen", "freeze_blocks", "lora", "checkpointing", "max_tokens", "pooling", "prompts", "head"),
}


def start_from(config: ModelConfig, image: ImageConfig, modalities: set[str]) -> Towers:
    """The model that ``config.name`` names, with what the sections beside it change.

    Frozen towers are frozen here; ``freeze_blocks`` and ``lora`` are left to the caller, as for new towers.

    Args:
        config: with a ``name``.
        image: ``data.image``; what of it is set has to agree with the model.
        modalities: what the method embeds.

    Raises:
        MmclError: there is no such model, it does not embed these, or a section sets what the model has already.
    """
    assert config.name is not None, "the caller looks"
    for modality in sorted(modalities):
        _refuse_settings_of_new_towers(config.name, modality, getattr(config, modality))
    towers = open_model(config.name)
    if "dim" in _changed(config) and config.dim != towers.width:
        raise MmclError(f"model.dim is {config.dim}, but '{config.name}' embeds into {towers.width}; leave it out")
    embedders: dict[str, Embedder] = {}
    for modality in sorted(modalities):
        section = getattr(config, modality) or TowerConfig()
        embedder = towers.embedder(modality)
        if modality == "image":
            _adapt_image(towers.image_tower(), section, image, config.name)
        else:
            _adapt_text(towers.text_tower(), section, config.name)
        if section.checkpointing:
            checkpoint_activations(embedder.tower.net, f"model.{modality}.checkpointing: '{config.name}'")
        if "dropout" in _changed(section.head):
            embedder.head.set_dropout(section.head.dropout)
        embedders[modality] = Embedder(embedder.tower, embedder.head, frozen=section.frozen)
    start = Towers(embedders, towers.width, config.name)
    start.logit_scale, start.logit_bias = towers.logit_scale, towers.logit_bias
    start.heads = towers.heads
    return start


def _refuse_settings_of_new_towers(name: str, modality: str, section: TowerConfig | None) -> None:
    if section is None:
        return
    wrong = sorted(_changed(section) - set(_MAY_CHANGE[modality]))
    wrong += sorted(f"head.{key}" for key in _changed(section.head) - {"dropout"})
    if wrong:
        settings = ", ".join(f"model.{modality}.{key}" for key in wrong)
        raise MmclError(f"{settings}: '{name}' is a model and has its own; leave it out, or leave out model.name")


def _changed(section: Section) -> set[str]:
    """The settings that differ from their defaults: a run's own config.yaml names the others as well."""
    fields = type(section).model_fields
    return {
        key
        for key in section.model_fields_set
        if getattr(section, key) != fields[key].get_default(call_default_factory=True)
    }


def _adapt_image(tower: ImageTower, section: Any, image: ImageConfig, name: str) -> None:
    tower.exact_decoding |= image.exact_decoding
    for key in sorted(_changed(image) - {"exact_decoding", "root"}):  # root says where images lie
        wanted, own = getattr(image, key), tower.spec[key]
        if wanted != own and not (key == "resize" and str(own).startswith(wanted)):
            raise MmclError(f"data.image.{key} is {wanted}, but '{name}' takes {own}; leave it out")
    if rate := getattr(section, "patch_dropout", 0.0):
        drop_patches(tower.net, rate, tower.size, f"model.image.patch_dropout: '{name}'")


def _adapt_text(tower: TextTower, section: Any, name: str) -> None:
    limit = getattr(section, "max_tokens", None)
    if limit is not None and limit > tower.max_tokens:
        raise MmclError(f"model.text.max_tokens is {limit}, but '{name}' reads at most {tower.max_tokens}")
    tower.max_tokens = limit or tower.max_tokens
    pooling, width = getattr(section, "pooling", None), tower.width
    if pooling not in (None, tower.pooling):
        if tower.pooling == "pooled":
            raise MmclError(f"model.text.pooling: '{name}' has a pooling of its own; leave it out")
        tower.set_pooling(pooling)
        if tower.width != width:
            raise MmclError(f"model.text.pooling: '{name}' reads {width} features, but {pooling} gives {tower.width}")
    if (prompts := getattr(section, "prompts", None)) is not None:
        tower.replace_prompts(prompts)
