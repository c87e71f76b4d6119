"""What a method sees of the first rows that a config trains on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmcl.config.schema import Config
from mmcl.data.augment.random_crop import PackedImages
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.feed import open_feed
from mmcl.data.patches import images_of_patches
from mmcl.data.processors.table import Categories, Numbers, TableProcessor
from mmcl.methods import Method
from mmcl.training.build import build_method

Item: TypeAlias = np.ndarray | list[str]
"""An image, uint8 (H, W, 3), or the tokens of a text, or the cells of a row."""
_SHOWN_VALUES = 12  # of a cell that is a list


@dataclass(frozen=True)
class FirstViews:
    """Rows, and what they become.

    Attributes:
        source: what the rows are of.
        names: of the rows.
        columns: title to an item of each row: images as they are stored, then each view.
    """

    source: str
    names: list[str]
    columns: dict[str, list[Item]]


def first_views(config: Config, rows: int, show_progress: bool | None = None) -> FirstViews:
    """The views of the first ``rows`` of the first epoch, at most of a batch, on a CPU.

    Texts and images are read, and kept in the cache for a run to come; a tokenizer of the run's own is trained.

    Raises:
        MmclError: as :func:`mmcl.training.train` before its first step.
    """
    count = min(rows, config.training.batch_size)
    few = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": count})})
    with tempfile.TemporaryDirectory(prefix="mmcl-show-") as folder:
        method = build_method(config, Path(folder)).train()
        sources = [config.data.train, *config.data.mix]
        cpu = torch.device("cpu")
        feed = open_feed(sources, method.reading, few, None, augmented=True, device=cpu, show_progress=show_progress)
        batches = feed.batches(0, 1)
        try:
            batch = next(batches)
        finally:
            batches.close()
        return FirstViews(feed.name, feed.names(batch), _columns(method, batch.inputs, method.view_inputs(batch)))


def _columns(method: Method, stored: Mapping[str, Inputs], made: Mapping[str, Inputs]) -> dict[str, list[Item]]:
    columns: dict[str, list[Item]] = {}
    views = method.views()
    for column, modality in method.columns.items():
        of = {name: view for name, view in views.items() if view.column == column}
        if modality == "image" and of:
            columns[f"{column}, as stored"] = _stored(stored[column])
        for name, view in of.items():
            if modality == "image":
                items = _images(made[name])
            else:
                items = (_cells if modality == "table" else _tokens)(method, view.tower, made[name])
            for number in range(view.count):
                seen = "as seen" if view.count == 1 else f"view {number + 1}"
                columns[f"{name}, {seen}"] = items[number :: view.count]
    return columns


def _stored(inputs: Inputs) -> list[Item]:
    if "patches" in inputs:
        return list(images_of_patches(**inputs))
    images = PackedImages(**inputs).images() if "packed" in inputs else inputs["pixels"]
    return [image.numpy() for image in images]


def _images(inputs: Inputs) -> list[Item]:
    if "patches" in inputs:
        return _stored(inputs)
    pixels = inputs["pixels"]
    if pixels.dtype == torch.uint8:
        return [image.numpy() for image in pixels]
    return [image.numpy() for image in (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1)]


def _cells(method: Method, tower: str, inputs: Inputs) -> list[Item]:
    """The values and standard scores of each row, as many as a cell of the sheet can hold; texts and images among the
    columns are not shown."""
    processor = method.encoder.embedder(tower).processor
    assert isinstance(processor, TableProcessor), "as its modality says"
    rows: list[list[str]] = [[] for _ in next(iter(inputs.values()))]
    for column, field in processor.fields.items():
        if isinstance(field, Categories):
            for row, values in zip(rows, inputs[f"{column}/values"].tolist(), strict=True):
                named = [field.value(number) for number in values if number]
                more = ["…"] if len(named) > _SHOWN_VALUES else []
                row += [f"{column}:", *named[:_SHOWN_VALUES], *more]
        elif isinstance(field, Numbers):
            for row, (score, there) in zip(rows, inputs[f"{column}/numbers"].tolist(), strict=True):
                row.append(f"{column}: {score:+.2f}" if there else f"{column}: none")
    return list(rows)


def _tokens(method: Method, tower: str, inputs: Inputs) -> list[Item]:
    decode = method.encoder.text(tower).processor.tokenizer.decode
    ids: Tensor = inputs["input_ids"]
    masks = inputs.get("attention_mask", torch.ones_like(ids))
    return [[decode([token]) for token in row[mask == 1].tolist()] for row, mask in zip(ids, masks, strict=True)]
