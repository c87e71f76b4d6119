"""From a config to what it describes: encoder and method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from mmcl.config.schema import Config
from mmcl.data.augment import Augmentation
from mmcl.data.rows import Rows
from mmcl.data.tokens import texts_of
from mmcl.methods import METHODS, Method
from mmcl.models.embedder import Embedder
from mmcl.models.encoder import Encoder
from mmcl.models.heads import Head
from mmcl.models.image_tower import ImageTower
from mmcl.models.text_tower import SCRATCH_MAX_TOKENS, TextTower
from mmcl.models.tokenizer import train_tokenizer
from mmcl.models.weights import full_disk_is_oserror
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import atomic_folder

CAPTIONS_FOR_TOKENIZER = 1_000_000
_BLOCK = 10_000


def build_method(config: Config, rows: Rows, folder: Path) -> Method:
    """The method and its towers, with weights drawn from the config's seed.

    Args:
        config: of the run.
        rows: the training rows, whose captions a new tokenizer is trained on.
        folder: of the run, where that tokenizer is kept, since a resumed run needs the same one.
    """
    torch.manual_seed(config.seed)
    kind = METHODS[config.method.name]
    for role in config.data.columns:
        if role not in kind.inputs:
            hint = nearest(role, kind.inputs)
            raise MmclError(f"data.columns.{role}: method '{config.method.name}' has no such role; {hint}")
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
            tower = _text_tower(config, rows, config.data.columns.get(role, role), folder)
        head = Head(section.head, tower.width, config.model.dim)
        embedders[modality] = Embedder(tower, head, frozen=section.frozen)
    encoder = Encoder(embedders, config.model.dim, config.name)
    augmentation = Augmentation(config.augmentation, config.data.image.size) if augments(config) else None
    return kind(config.method, encoder, augmentation)


def augments(config: Config) -> bool:
    """Whether training pictures are changed at random."""
    return config.augmentation != type(config.augmentation)()


def _text_tower(config: Config, rows: Rows, column: str, folder: Path) -> TextTower:
    section = config.model.text
    assert section is not None  # narrowed by the caller
    if section.name != "scratch":
        return TextTower.build(section)
    from transformers import AutoTokenizer

    kept = folder / "tokenizer"
    if not kept.is_dir() and distributed.rank() == 0:
        rows.require([column])
        with atomic_folder(kept) as beside:
            limit = section.max_tokens or SCRATCH_MAX_TOKENS
            tokenizer = train_tokenizer(_captions(rows, column), section.tokenizer, limit)
            with full_disk_is_oserror(beside):
                tokenizer.save_pretrained(beside)
    distributed.barrier()
    return TextTower.build(section, tokenizer=AutoTokenizer.from_pretrained(kept))


def _captions(rows: Rows, column: str) -> Iterator[str]:
    for start in range(0, min(len(rows), CAPTIONS_FOR_TOKENIZER), _BLOCK):
        for value in rows.select(range(start, min(start + _BLOCK, len(rows)))).texts(column):
            yield from texts_of(value)
