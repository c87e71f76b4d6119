"""What a batch of N items looks like on its way to an embedder: here alone is it made, counted, divided and joined.

Texts: ``input_ids`` (N, L) are tokens and, on the right, padding; ``attention_mask`` (N, L) is 1 where they are
tokens, and absent where there is no padding. ``skipped`` (N,) says how many of a text's first tokens the pooling leaves
out, and is absent where it leaves out none.

Tables: what each field has, under the name of its column: ``genres/values``, int64 numbers (N, L) filled up with 0;
``age/numbers`` (N, 2), a standard score and whether there is one; ``title/input_ids``, ``cover/pixels``.

Images: ``pixels`` uint8 (N, S, S, 3) are what the tower sees. A tower that keeps the shape of images sees ``patches``
uint8 (N, M, 3P²) of P × P pixels each, row by row of the image, filled up with zeros, and ``grid`` (N, 2), how many
rows and columns of them there are; it takes squares as well. Originals, of which views are yet to be cropped, are
``sizes`` (N, 2) and ``packed`` (P, 3), see :class:`~mmcl.data.augment.random_crop.PackedImages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.data.augment.random_crop import PackedImages
from mmcl.data.cache.tokens import texts_of
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import Categories, TableProcessor
from mmcl.data.processors.text import TextProcessor


def text_inputs(processor: TextProcessor, tokens: Sequence[np.ndarray], skipped: np.ndarray | int) -> dict[str, Tensor]:
    """The inputs of a text tower for token ids that ``processor`` gave; ``skipped`` is of each text or of all."""
    inputs = processor.collate(tokens)
    if np.any(skipped):
        inputs["skipped"] = torch.from_numpy(np.broadcast_to(skipped, len(tokens)).astype(np.int64))
    return inputs


def image_inputs(originals: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Images (H, W, 3) on their way to random crops."""
    packed = [np.empty((0, 3), dtype=np.uint8), *(image.reshape(-1, 3) for image in originals)]
    sizes = torch.tensor([image.shape[:2] for image in originals], dtype=torch.int64).view(-1, 2)
    return {"sizes": sizes, "packed": torch.from_numpy(np.concatenate(packed))}


class TableInputs(NamedTuple):
    """What a table tower reads of rows.

    Attributes:
        tensors: by column and name.
        unknown: column to how many of its values are not known, and count as missing.
        unreadable: place of each row with an image that cannot be read, to the reason; its pixels are zero.
    """

    tensors: dict[str, Tensor]
    unknown: dict[str, int]
    unreadable: dict[int, str]


def table_inputs(processor: TableProcessor, rows: Sequence[Mapping[str, Any]]) -> TableInputs:
    """The inputs of a table tower for rows by their columns; what a row lacks is missing, a text then empty.

    Raises:
        ValueError: a value is neither text nor a whole number; the message begins with its column.
    """
    tensors: dict[str, Tensor] = {}
    unknown: dict[str, int] = {}
    unreadable: dict[int, str] = {}
    for column, field in processor.fields.items():
        cells = [row.get(column) for row in rows]
        if isinstance(field, TextProcessor):
            tokens, _ = field.tokenize([next(iter(texts_of(cell)), "") for cell in cells])
            found = text_inputs(field, tokens, field.skipped())
        elif isinstance(field, ImageProcessor):
            found, errors = field.inputs([Path(cell) if isinstance(cell, str) else cell for cell in cells])
            unreadable |= {place: f"{column}: {why}" for place, why in errors.items()}
        else:
            others = field.without if isinstance(field, Categories) else None
            try:
                read, missed = field.read(cells, None if others is None else [row.get(others) for row in rows])
            except ValueError as error:
                raise ValueError(f"column '{column}' holds {error}") from None
            unknown |= {column: missed} if missed else {}
            found = field.collate(read)
        tensors |= {f"{column}/{name}": tensor for name, tensor in found.items()}
    return TableInputs(tensors, unknown, unreadable)


def token_counts(texts: dict[str, Tensor]) -> Tensor:
    """(N,) tokens of each text."""
    if "attention_mask" in texts:
        return texts["attention_mask"].sum(dim=1)
    ids = texts["input_ids"]
    return torch.full((len(ids),), ids.shape[1], device=ids.device)


def take_rows(inputs: dict[str, Tensor], rows: slice | Tensor) -> dict[str, Tensor]:
    """Some rows of an embedder's inputs of any kind; texts without the padding that only other rows needed."""
    if "packed" in inputs:
        return PackedImages(**inputs).take(rows)._asdict()
    part = {name: tensor[rows] for name, tensor in inputs.items()}
    if "attention_mask" in part and len(part["attention_mask"]):
        longest = max(1, int(token_counts(part).max()))
        part |= {name: part[name][:, :longest] for name in ("input_ids", "attention_mask")}
    return part


def join_inputs(parts: Sequence[dict[str, Tensor]], padding: int = 0) -> dict[str, Tensor]:
    """Several lists of texts as one, padded with ``padding`` to its longest text; or of features or pixels."""
    if "input_ids" not in parts[0]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tokens = [part["input_ids"] for part in parts]
    missing = [max(ids.shape[1] for ids in tokens) - ids.shape[1] for ids in tokens]
    filled = [F.pad(ids, (0, k), value=padding) for ids, k in zip(tokens, missing, strict=True)]
    inputs = {"input_ids": torch.cat(filled)}
    if any(missing) or any("attention_mask" in part for part in parts):
        masks = [part.get("attention_mask", torch.ones_like(part["input_ids"], dtype=torch.int64)) for part in parts]
        inputs["attention_mask"] = torch.cat([F.pad(mask, (0, k)) for mask, k in zip(masks, missing, strict=True)])
    if any("skipped" in part for part in parts):
        none = [ids.new_zeros(len(ids)) for ids in tokens]
        inputs["skipped"] = torch.cat([part.get("skipped", no) for part, no in zip(parts, none, strict=True)])
    return inputs
