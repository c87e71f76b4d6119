"""From a config to what it describes: encoder and method; and from a trained method to what is saved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from mmcl.config.model import TowerConfig
from mmcl.config.schema import Config
from mmcl.data.augment import Augmentation
from mmcl.data.rows import Rows
from mmcl.data.shard_columns import ShardColumn, require_columns, shard_captions
from mmcl.data.shards import is_shards, list_shards
from mmcl.data.sources import open_source
from mmcl.data.tokens import texts_of
from mmcl.methods import METHODS, Method
from mmcl.models.blocks import freeze
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.folder import load
from mmcl.models.heads import Head
from mmcl.models.image_tower import ImageTower
from mmcl.models.lora import add_lora, merge_lora
from mmcl.models.start import start_from
from mmcl.models.text_tower import SCRATCH_MAX_TOKENS, TextTower
from mmcl.models.tokenizer import train_tokenizer
from mmcl.models.weights import full_disk_is_oserror
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import atomic_folder

CAPTIONS_FOR_TOKENIZER = 1_000_000
_BLOCK = 10_000


def build_method(config: Config, folder: Path) -> Method:
    """The method and its towers, with weights drawn from the config's seed or loaded as it says.

    Args:
        config: of the run; a new tokenizer is trained on the captions of its training rows.
        folder: of the run, where that tokenizer is kept, since a resumed run needs the same one.

    Raises:
        MmclError: the config does not fit the method, or a model cannot be had.
    """
    torch.manual_seed(config.seed)
    kind = METHODS[config.method.name]
    for role in config.data.columns:
        if role not in kind.inputs:
            hint = nearest(role, kind.inputs)
            raise MmclError(f"data.columns.{role}: method '{config.method.name}' has no such role; {hint}")
    if config.model.name:
        encoder = start_from(config.model, config.data.image, set(kind.inputs.values()))
    else:
        encoder = _encoder(config, kind, folder)
    for modality in sorted(encoder.modalities):
        _adapt(encoder.embedder(modality), _section(config, modality))
    size = encoder.image_size
    augmentation = Augmentation(config.augmentation, size) if size and augments(config) else None
    teaching = getattr(config.method, "teacher", None)
    teacher = load(teaching.name) if teaching else None
    return kind(config.method, encoder, augmentation, batch_size=config.training.batch_size, teacher=teacher)


def finish_encoder(method: Method) -> Encoder:
    """The encoder of a trained method, ready to be saved: adapters are merged, and the learned scale is noted."""
    encoder = method.encoder
    for modality in sorted(encoder.modalities):
        merge_lora(encoder.embedder(modality).tower.net)
    encoder.logit_scale, encoder.logit_bias = method.learned_scale()
    return encoder


def augments(config: Config) -> bool:
    """Whether training pictures are changed at random."""
    return config.augmentation != type(config.augmentation)()


def _encoder(config: Config, kind: type[Method], folder: Path) -> Encoder:
    embedders: dict[str, Embedder] = {}
    for role, modality in kind.inputs.items():
        if modality in embedders:
            continue
        section = config.model.image if modality == "image" else config.model.text
        if section is None:
            raise MmclError(f"model.{modality} is missing: method '{config.method.name}' needs it for its {role} input")
        if modality == "image":
            tower: ImageTower | TextTower = ImageTower.build(config.model.image, config.data.image)  # type: ignore[arg-type]
        else:
            tower = _text_tower(config, role, folder)
        head = Head(section.head, tower.width, config.model.dim)
        embedders[modality] = Embedder(tower, head, frozen=section.frozen)
    return Encoder(embedders, config.model.dim, config.name)


def _section(config: Config, modality: str) -> TowerConfig:
    section = config.model.image if modality == "image" else config.model.text
    return section or TowerConfig()


def _adapt(embedder: Embedder, section: TowerConfig) -> None:
    """Freeze the first blocks, and put low-rank adapters into the others, as the config says."""
    if section.frozen:
        for key in ("freeze_blocks", "lora", "patch_dropout"):
            if getattr(section, key, None):
                where = f"model.{embedder.tower.modality}"
                raise MmclError(f"{where}.{key} does nothing in a tower that is frozen; leave it or {where}.frozen out")
    net = embedder.tower.net
    for name, parameter in net.named_parameters():
        if name.endswith(
            "mask_token"
        ):  # of DINOv2's own training: no gradient reaches it here, which DDP would wait for
            parameter.requires_grad_(False)
    embedder.keep_still(freeze(net, section.freeze_blocks))
    if section.lora is not None:
        embedder.keep_still(add_lora(net, section.lora))


def _text_tower(config: Config, role: str, folder: Path) -> TextTower:
    section = config.model.text
    assert section is not None  # narrowed by the caller
    if section.name != "scratch" or section.tokenizer.name:
        return TextTower.build(section)
    from transformers import AutoTokenizer

    kept = folder / "tokenizer"
    if not kept.is_dir() and distributed.rank() == 0:
        with atomic_folder(kept) as beside:
            limit = section.max_tokens or SCRATCH_MAX_TOKENS
            captions = itertools.islice(_captions(config, role), CAPTIONS_FOR_TOKENIZER)
            tokenizer = train_tokenizer(captions, section.tokenizer, limit)
            with full_disk_is_oserror(beside):
                tokenizer.save_pretrained(beside)
    distributed.barrier()
    return TextTower.build(section, tokenizer=AutoTokenizer.from_pretrained(kept))


def _captions(config: Config, role: str) -> Iterator[str]:
    """The captions of all training sources, one after the other."""
    column = config.data.columns.get(role)
    for source in (config.data.train, *config.data.mix):
        if is_shards(source.source):
            shards, read = list_shards(source.source), ShardColumn(role, "text", column)
            require_columns(shards, [read])
            yield from shard_captions(shards, read)
        else:
            rows = open_source(source.source, split=source.split)
            rows.require([column or role])
            yield from captions_of(rows, column or role)


def captions_of(rows: Rows, column: str) -> Iterator[str]:
    """The captions in a column, read block by block."""
    for start in range(0, len(rows), _BLOCK):
        for value in rows.select(range(start, min(start + _BLOCK, len(rows)))).texts(column):
            yield from texts_of(value)
