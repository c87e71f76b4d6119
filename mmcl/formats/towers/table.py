"""Table towers as a model folder describes them, and the files of their fields there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcl.config.model import CategoryFieldConfig, HeadConfig
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import Categories, Cells, Field, TableProcessor, cells_from
from mmcl.data.processors.text import TextProcessor
from mmcl.formats.tokenizers import save_tokenizer
from mmcl.formats.towers.image import describe_image_tower, rebuild_image_tower
from mmcl.formats.towers.text import describe_text_tower, rebuild_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.table.embedder import TableEmbedder
from mmcl.models.table.tower import CategoryBag, FieldNet, NumberPair, TableTower
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.tower import TextTower
from mmcl.runtime.files import read_json, write_json

FIELDS = "fields.json"
"""The vocabularies, means and deviations of a tower's fields."""


def cell_net(field: Cells, section: object) -> FieldNet:
    """A new network of a field of categories or numbers, by its section of the config."""
    if isinstance(field, Categories):
        assert isinstance(section, CategoryFieldConfig), "a field is what its section says"
        return CategoryBag(field.entries, section.width)
    return NumberPair()


def text_field(processor: TextProcessor, tower: TextTower, *, frozen: bool = False) -> TextEmbedder:
    """A field of texts: what the tower gives, without a head."""
    return TextEmbedder(processor, tower, _no_head(tower.width), frozen=frozen)


def image_field(processor: ImageProcessor, tower: ImageTower, *, frozen: bool = False) -> ImageEmbedder:
    """A field of images: what the tower gives, without a head."""
    return ImageEmbedder(processor, tower, _no_head(tower.width), frozen=frozen)


def _no_head(width: int) -> Head:
    return Head(HeadConfig(kind="none"), width, width)


def describe_table_tower(embedder: TableEmbedder) -> dict[str, Any]:
    """What rebuilds the tower, weights and the files of its fields apart."""
    nets = zip(embedder.tower.columns, embedder.tower.net, strict=True)
    return {"fields": {column: _describe(net) for column, net in nets}}


def _describe(net: FieldNet) -> dict[str, Any]:
    if isinstance(net, TextEmbedder):
        return {"kind": "text", "tower": describe_text_tower(net.processor, net.tower)}
    if isinstance(net, ImageEmbedder):
        return {"kind": "image", "tower": describe_image_tower(net.processor, net.tower)}
    return {"kind": "category", "width": net.width} if isinstance(net, CategoryBag) else {"kind": "number"}


def save_fields(processor: TableProcessor, folder: Path) -> None:
    """Write the files of the fields: vocabularies and numbers in one, the tokenizer of each field of texts in a folder
    of the field's number."""
    write_json(folder / FIELDS, processor.cells())
    for number, field in enumerate(processor.fields.values()):
        if isinstance(field, TextProcessor):
            place = _place(folder, number)
            place.mkdir()
            save_tokenizer(field.tokenizer, place)


def _place(folder: Path, number: int) -> Path:
    return folder / f"field-{number}"


def rebuild_table_tower(spec: Mapping[str, Any], folder: Path, files: Path) -> tuple[TableProcessor, TableTower]:
    """Of what :func:`describe_table_tower` gave, the processor and the tower, with fresh weights.

    Args:
        spec: of the tower.
        folder: of the model, with the weights that the tower is to have.
        files: folder of its fields' files.
    """
    cells = read_json(files / FIELDS)
    fields: dict[str, Field] = {}
    nets: dict[str, FieldNet] = {}
    for number, (column, of) in enumerate(spec["fields"].items()):
        if of["kind"] == "text":
            texts, text = rebuild_text_tower(of["tower"], folder, _place(files, number))
            fields[column], nets[column] = texts, text_field(texts, text)
        elif of["kind"] == "image":
            images, image = rebuild_image_tower(of["tower"])
            fields[column], nets[column] = images, image_field(images, image)
        else:
            field = cells_from(cells[column])
            fields[column] = field
            nets[column] = CategoryBag(field.entries, of["width"]) if isinstance(field, Categories) else NumberPair()
    return TableProcessor(fields), TableTower(nets)
