"""The files of a sample that a role is read from: pictures and captions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from mmcl.data.images import ImageError, ImageInput, PreparedImage
from mmcl.data.rows import passage_of
from mmcl.data.shard_stream import SampleError
from mmcl.data.shards import Sample, ShardError, is_local, read_shard, shard_name
from mmcl.data.tokens import texts_of
from mmcl.runtime.errors import MmclError

_DEFAULTS = {"image": "jpg;jpeg;png;webp;gif;bmp;tif;tiff;avif", "text": "txt;json.caption;json.text"}
_LOOKED_AT = 100  # samples, before a run, in which a role that all of them lack is a mistake in its name


class NoTextError(SampleError):
    """A sample has no text where one was looked for, and nothing in it is damaged."""


class ShardColumn:
    """Where a role stands in a sample: the first of several extensions that the sample has.

    Args:
        role: what it is read for.
        modality: ``image``, ``text`` or ``number``; it decides what is read if ``extensions`` is absent.
        extensions: such as ``jpg;png``. ``json.caption`` is the field ``caption`` of the file ``json``. If absent,
            those of pictures and captions for the roles ``image`` and ``text``, and the role's own for another: such as
            ``anchor.txt`` or the field ``anchor`` of ``json``.

    Attributes:
        files: the extensions of the files to read.
    """

    def __init__(self, role: str, modality: str, extensions: str | None = None) -> None:
        self.role = role
        default = _DEFAULTS[modality] if role == modality else f"{role}.txt;json.{role}"
        self.choices = [part.strip().lstrip(".") for part in (extensions or default).split(";")]
        self.files = {choice.lower() for choice in self.choices}
        self.files |= {"json" for choice in self.choices if choice.startswith("json.")}

    def __str__(self) -> str:
        return ";".join(self.choices)

    def stands_in(self, sample: Sample) -> bool:
        """Whether the sample has one of the files."""
        return not self.files.isdisjoint(sample.files)

    def picture(self, sample: Sample, prepare: Callable[[ImageInput], PreparedImage]) -> np.ndarray:
        """The image's pixels as ``prepare`` gives them. Raises ``SampleError`` if there is none that can be read."""
        for choice in self.choices:
            if choice.lower() in sample.files:
                try:
                    return prepare(sample.read(choice.lower())).pixels
                except ImageError as error:
                    raise SampleError(self.role, str(error)) from error
        raise self._missing(sample)

    def captions(self, sample: Sample) -> list[str]:
        """The texts that are not blank, one or more. Raises ``SampleError`` if they cannot be read, ``NoTextError`` if
        there are none."""
        for choice in self.choices:
            value = self._value(sample, choice)
            if value is None:
                continue
            if texts := texts_of(self._texts(value)):
                return texts
            raise NoTextError(self.role, "no text")
        raise NoTextError(self.role, self._missing(sample).reason)

    def number(self, sample: Sample) -> float:
        """The number. Raises ``SampleError`` if there is none."""
        for choice in self.choices:
            if (value := self._value(sample, choice)) is not None:
                try:
                    number = float(value)
                except (TypeError, ValueError):
                    number = math.nan
                if math.isfinite(number):
                    return number
                raise SampleError(self.role, "no number")
        raise self._missing(sample)

    def _value(self, sample: Sample, choice: str) -> Any:
        """What one of the choices names; None if the sample lacks it."""
        if choice.lower() in sample.files:
            data = sample.read(choice.lower())
            return self._json(data) if choice.split(".")[-1] == "json" else self._decoded(data).strip()
        if choice.startswith("json.") and "json" in sample.files:
            fields = self._json(sample.read("json"))
            return fields.get(choice.removeprefix("json.")) if isinstance(fields, dict) else None
        return None

    def _texts(self, value: Any) -> str | list[str]:
        if isinstance(value, list):
            return [text for item in value if item is not None for text in texts_of(self._texts(item))]
        if (passage := passage_of(value)) is not None:
            return passage
        if isinstance(value, dict):
            raise SampleError(self.role, "a JSON object, not text; name one of its fields, such as json.caption")
        return str(value)

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError(self.role, f"not UTF-8 text: {error}") from error

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(self._decoded(data))
        except ValueError as error:
            raise SampleError(self.role, f"not JSON: {error}") from error

    def _missing(self, sample: Sample) -> SampleError:
        return SampleError(self.role, f"no {self}; the sample has {', '.join(sorted(sample.files)) or 'no files'}")


def require_columns(shards: Sequence[str], columns: Sequence[ShardColumn]) -> None:
    """Raise ``MmclError`` if a whole run would find nothing: the first local shard has a column in none of its first
    samples."""
    shard = next(filter(is_local, shards), None)
    if shard is None:
        return
    first: list[Sample] = []
    try:
        first.extend(islice(read_shard(shard, wanted=()), _LOOKED_AT))
    except ShardError:
        return  # told when it is read to learn from
    for column in columns:
        if first and not any(column.stands_in(sample) for sample in first):
            have = ", ".join(sorted({extension for sample in first for extension in sample.files}))
            raise MmclError(
                f"{shard_name(shard)}: no sample has {column} for '{column.role}'; they have {have}; "
                f"name what to read as data.columns.{column.role}"
            )


def shard_captions(shards: Sequence[str], column: ShardColumn) -> Iterator[str]:
    """The captions of all samples, in the order of the shards; what cannot be read is left out."""
    for shard in shards:
        try:
            for sample in read_shard(shard, wanted=column.files):
                try:
                    yield from column.captions(sample)
                except SampleError:
                    continue
        except ShardError:
            continue
