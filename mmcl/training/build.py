"""From a config to what it describes: encoder and method; and from a trained method to what is saved."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from mmcl.config.data import TrainSourceConfig
from mmcl.config.methods import METHODS
from mmcl.config.model import (
    CategoryFieldConfig,
    ImageTowerConfig,
    NumberFieldConfig,
    TableTowerConfig,
    TextTowerConfig,
    TowerConfig,
)
from mmcl.config.schema import Config
from mmcl.config.training import TokenLimit
from mmcl.data.batches.feed import Feed
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.table import Table
from mmcl.data.batches.tokenizer_texts import CHARACTERS, WORD_CHARACTERS, training_texts
from mmcl.data.batches.views import Augment, draw_numbers
from mmcl.data.processors.fit_table import TrainingRows
from mmcl.data.processors.table import Field, TableProcessor
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.data.sources.tar.shards import is_shards
from mmcl.formats.lora import add_lora, merge_lora
from mmcl.formats.open import open_model
from mmcl.formats.start import start_from
from mmcl.formats.tokenizers import read_tokenizer
from mmcl.formats.towers.image import build_image_tower
from mmcl.formats.towers.registered import MAX_TOKENS
from mmcl.formats.towers.table import cell_net, image_field, text_field
from mmcl.formats.towers.text import build_text_tower, lacks_tokenizer
from mmcl.methods import Context, Method
from mmcl.methods.base import REFERENCES
from mmcl.methods.image.image_only import require_readable
from mmcl.methods.parts.online_probe import PROBE, OnlineProbe
from mmcl.models.blocks import freeze
from mmcl.models.embedder import Embedder, embedders
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.table.embedder import TableEmbedder
from mmcl.models.table.tower import FieldNet, TableTower
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_folder
from mmcl.runtime.full_disk import full_disk_is_oserror
from mmcl.training.optimization.micro_batch import NO_TOKENS

log = logging.getLogger("mmcl")


def build_method(config: Config, folder: Path) -> Method:
    """The method and its towers, with weights drawn from the config's seed or loaded as it says.

    Args:
        config: of the run; a new tokenizer is trained on the captions of its training rows.
        folder: of the run, where that tokenizer is kept, since a resumed run needs the same one.

    Raises:
        MmclError: the config does not fit the method, or a model cannot be had.
    """
    torch.manual_seed(config.seed)
    kind: type[Method] = METHODS[config.method.name]
    columns, towers = kind.columns_of(config), kind.towers_of(config)
    modalities = set(columns.values()) & {"image", "text"}
    _refuse_what_is_not_read(config, modalities)
    if config.model.name:
        encoder = start_from(config.model, config.data.image, {name: columns[of[0]] for name, of in towers.items()})
    else:
        encoder = _encoder(config, towers, folder)
    for name in encoder.names:
        _adapt(encoder.embedder(name), config.model.tower(name) or TowerConfig(), config.model.where(name))
    references = {name: getattr(config.method, name, None) for name in REFERENCES}
    method = kind(
        config.method,
        encoder,
        Context(
            columns=columns,
            batch_size=config.training.batch_size,
            exchange=config.training.exchange if distributed.world_size() > 1 else None,
            mined=config.data.mining.count if config.data.mining else 0,
            augmentation=config.augmentation if config.augments("image") else None,
            references={name: open_model(section.name) for name, section in references.items() if section is not None},
        ),
    )
    if config.augmentation.size:
        for name in encoder.names:
            if encoder.embedder(name).modality == "image":
                require_readable(encoder.image(name).tower, config.augmentation.size, "augmentation.size")
    _refuse_equal_views(method, config)
    _refuse_unused_second(method, config)
    _log_heads(method)
    return method


def add_probe(method: Method, config: Config, feed: Feed) -> None:
    """Give the method the probe that ``evaluation.probe`` asks for, which knows the labels of the training rows.

    Raises:
        MmclError: the rows are a stream, whose labels are not known beforehand.
    """
    if config.evaluation.probe is None:
        return
    if not isinstance(feed, Table):
        raise MmclError(
            f"evaluation.probe: {feed.name} is a stream, whose labels are not known beforehand; leave it out"
        )
    labels = feed.columns[PROBE].inputs(feed.positions)["labels"].numpy()
    name = method.probe_view
    method.probe = OnlineProbe(labels, method.encoder.width, name, method.views()[name].count)
    method.probe.to(method.encoder.device)


def probed(
    reading: Reading, sources: Sequence[TrainSourceConfig], config: Config
) -> tuple[Reading, list[TrainSourceConfig]]:
    """What is read of the training sources, and these, with the labels that the probe of a run learns. They are none of
    the method's own columns: what it learns does not depend on them."""
    if config.evaluation.probe is None:
        return reading, list(sources)
    named = [of.model_copy(update={"columns": {**of.columns, PROBE: config.evaluation.probe}}) for of in sources]
    return replace(reading, columns={**reading.columns, PROBE: "label"}), named


@contextmanager
def probe_named() -> Iterator[None]:
    """Within, an error about the column of the probe's labels names the setting that says which it is."""
    with _renamed(rf"data\.columns\.{PROBE}", "evaluation.probe"):
        yield


def _log_heads(method: Method) -> None:
    """Say which heads of the model to start from go on, and which do not."""
    encoder = method.encoder
    taken = [name for name, head in encoder.heads.items() if name in method.heads and method.heads[name] is head]
    unused = [name for name in encoder.heads if name not in method.heads]
    if taken:
        log.info("%s: training starts with its %s", encoder.name, " and ".join(taken))
    if unused:
        log.info("%s: method '%s' has no use for its %s", encoder.name, method.config.name, " and ".join(unused))


def finish_encoder(method: Method) -> Towers:
    """The encoder of a trained method, ready to be saved: adapters are merged, and what else was learned is noted."""
    encoder = method.encoder
    for name in encoder.names:
        for embedder in embedders(encoder.embedder(name)).values():  # and those of a table's fields
            merge_lora(embedder.tower.net)
    encoder.logit_scale, encoder.logit_bias = method.learned_scale()
    encoder.heads = {name: cast(Head, head) for name, head in method.heads.items()}
    return encoder


def require_tokens(method: Method, config: Config) -> None:
    """Raise ``MmclError`` where micro-batches are sized in tokens, and features stand in for these."""
    towers = {view.tower for view in method.views().values()}
    texts = [tower for tower in towers if method.encoder.modality(tower) == "text"]
    kept = all(method.encoder.embedder(tower).frozen for tower in texts) and not config.augments("text")
    streamed = bool(texts) and is_shards(config.data.train.source)
    if isinstance(config.training.micro_batch, TokenLimit) and kept and not streamed:
        raise MmclError(NO_TOKENS)


def _refuse_what_is_not_read(config: Config, modalities: set[str]) -> None:
    """Raise ``MmclError`` for settings of a tower that the method has not: they would do nothing."""
    settings = {"image": ("model.image", "augmentation"), "text": ("model.text", "text_augmentation")}
    for modality in sorted(settings.keys() - modalities):
        tower, section = settings[modality]
        given = getattr(config, section)
        wrong = [tower] * (getattr(config.model, modality) is not None) + [section] * (given != type(given)())
        if wrong:
            raise MmclError(f"{wrong[0]}: method '{config.method.name}' reads no {modality}s; leave it out")


def _refuse_equal_views(method: Method, config: Config) -> None:
    """Raise ``MmclError`` where two draws of a text would be the same: there would be nothing to learn."""
    unchanged = Counter(view.column for view in method.views().values() if view.transform is None)
    twice = [column for column, of in method.columns.items() if of == "text" and unchanged[column] > 1]
    if not twice or config.augments("text"):
        return
    embedder = method.encoder.embedder(method.reading.tower(twice[0]))
    drawn = embedder.head if embedder.frozen else embedder
    if not any(map(_drops, drawn.modules())):
        raise MmclError(
            f"method '{config.method.name}': without dropout both views of a text are the same, with nothing to "
            "learn; set model.text.head.dropout (model.text.dropout, from scratch) or text_augmentation"
        )


def _drops(module: nn.Module) -> bool:
    """Whether a layer draws dropout: torch's own, or one whose rate is a number of the module's, as BART's is."""
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
    return isinstance(rate, float) and rate > 0


def _refuse_unused_second(method: Method, config: Config) -> None:
    """Raise ``MmclError`` where no view is the second of an image: what is set for it would do nothing."""
    views = method.views()
    second = any(1 in of and isinstance(views[name].transform, Augment) for name, of in draw_numbers(views).items())
    if config.augmentation.second is not None and not second:
        raise MmclError(
            f"augmentation.second: method '{config.method.name}' takes one view of each image here; leave it out"
        )


def _encoder(config: Config, towers: Mapping[str, Sequence[str]], folder: Path) -> Towers:
    """New towers, by name and the columns that pass through them."""
    made: dict[str, Embedder] = {}
    for name, columns in towers.items():
        section = config.model.tower(name)
        if section is None:
            raise MmclError(
                f"model.{name} is missing: method '{config.method.name}' needs it for its {columns[0]} input"
            )
        with _of_section(config.model.where(name)):
            if isinstance(section, ImageTowerConfig):
                images, image = build_image_tower(section, config.data.image)
                head = Head(section.head, image.width, config.model.dim)
                made[name] = ImageEmbedder(images, image, head, frozen=section.frozen)
            elif isinstance(section, TableTowerConfig):
                table, fields = _table_tower(config, section, name, folder)
                head = Head(section.head, fields.width, config.model.dim)
                made[name] = TableEmbedder(table, fields, head, frozen=section.frozen)
            else:
                assert isinstance(section, TextTowerConfig), "there is no other"
                texts, text = _text_tower(config, section, columns, folder / _tokenizer_folder(config, name))
                head = Head(section.head, text.width, config.model.dim)
                made[name] = TextEmbedder(texts, text, head, frozen=section.frozen)
    return Towers(made, config.model.dim, config.name)


@contextmanager
def _of_section(where: str) -> Iterator[None]:
    """What makes towers knows its settings as ``model.text`` or ``model.image``: its errors name them in ``where``."""
    with _renamed(r"\bmodel\.(?:text|image)\b", where):
        yield


@contextmanager
def _renamed(pattern: str, setting: str) -> Iterator[None]:
    """Within, the message of an error has ``setting`` in place of ``pattern``."""
    try:
        yield
    except MmclError as error:
        named = re.sub(pattern, setting, str(error))
        if named == str(error):
            raise
        raise MmclError(named) from error


def _tokenizer_folder(config: Config, name: str) -> str:
    return f"tokenizer-{name}" if name in config.model.towers else "tokenizer"


def _adapt(embedder: Embedder, section: TowerConfig, where: str) -> None:
    """Freeze the first blocks, and put low-rank adapters into the others, as the config says."""
    if section.frozen:
        for key in ("freeze_blocks", "lora", "patch_dropout"):
            if getattr(section, key, None):
                raise MmclError(f"{where}.{key} does nothing in a tower that is frozen; leave it or {where}.frozen out")
    if isinstance(embedder, TableEmbedder):
        return  # its fields are adapted one by one
    net = embedder.tower.net
    for name, parameter in net.named_parameters():
        # Of DINOv2's own training: no gradient reaches it here, which DDP would wait for.
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)
    embedder.keep_in_eval(freeze(net, section.freeze_blocks))
    if section.lora is not None:
        embedder.keep_in_eval(add_lora(net, section.lora))


def _table_tower(
    config: Config, section: TableTowerConfig, name: str, folder: Path
) -> tuple[TableProcessor, TableTower]:
    """A table tower and what reads its fields, fitted to the training rows."""
    if not section.fields:
        raise MmclError(f"model.towers.{name}.fields is missing: name the columns that the tower reads")
    rows = TrainingRows(config)
    fields: dict[str, Field] = {}
    nets: dict[str, FieldNet] = {}
    for number, (column, of) in enumerate(section.fields.items()):
        where = f"{config.model.where(name)}.fields.{column}"
        with _of_section(where):
            if isinstance(of, CategoryFieldConfig | NumberFieldConfig):
                cells = fields[column] = rows.fit(column, of)
                nets[column] = cell_net(cells, of)
                continue
            net: Embedder
            if isinstance(of, ImageTowerConfig):
                images, image = build_image_tower(of, config.data.image)
                fields[column], net = images, image_field(images, image, frozen=of.frozen)
            else:
                texts, text = _text_tower(config, of, [column], folder / f"tokenizer-{name}-{number}")
                fields[column], net = texts, text_field(texts, text, frozen=of.frozen)
            _adapt(net, of, where)
            nets[column] = net
    return TableProcessor(fields), TableTower(nets)


def _text_tower(
    config: Config, section: TextTowerConfig, roles: Sequence[str], kept: Path
) -> tuple[TextProcessor, TextTower]:
    """A text tower and its processor; a tokenizer of its own is trained on ``roles``, and kept."""
    if not lacks_tokenizer(section):
        return build_text_tower(section)
    if not kept.is_dir() and distributed.rank() == 0:
        with atomic_folder(kept) as beside:
            limit = section.max_tokens or MAX_TOKENS
            characters = CHARACTERS if section.tokenizer.words is None else WORD_CHARACTERS
            tokenizer = train_tokenizer(training_texts(config, roles, characters), section.tokenizer, limit)
            with full_disk_is_oserror(beside):
                tokenizer.save_pretrained(beside)
    distributed.barrier()
    return build_text_tower(section, tokenizer=read_tokenizer(kept))
