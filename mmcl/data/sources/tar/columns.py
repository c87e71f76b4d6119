"""The files of a sample that a role is read from: images and captions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.images import ImageError, ImageInput, PreparedImage
from mmcl.data.rows import ColumnError, label_of, passage_of
from mmcl.data.sources.tar.names import is_local, shard_name
from mmcl.data.sources.tar.read import Reachable, Sample, ShardError, read_shard
from mmcl.data.sources.tar.stream import SampleError
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

_DEFAULTS = {
    "image": "jpg;jpeg;png;webp;gif;bmp;tif;tiff;avif;jfif;jpe;ppm;pgm;jp2",
    "text": "txt;json.caption;json.text",
    "label": "cls;label.txt;json.label",
}
_LARGEST = float(np.finfo(np.float32).max)  # number of a batch
_LOOKED_AT = 100  # samples, before a run, in which a role that all of them lack is a mistake in its name


class NoTextError(SampleError):
    """A sample has no text where one was looked for, and nothing in it is damaged."""


class ShardColumn:
    """Where a role stands in a sample: the first of several extensions that the sample has.

    Args:
        role: what it is read for.
        modality: ``image``, ``text``, ``label`` or ``number``; it decides what is read if ``extensions`` is absent.
        extensions: such as ``jpg;png``. ``json.caption`` is the field ``caption`` of the file ``json``. If absent,
            those of images, captions and classes for the roles ``image``, ``text`` and ``label``, and the role's own
            for another: such as ``anchor.txt`` or the field ``anchor`` of ``json``.

    Attributes:
        files: the extensions of the files to read.
    """

    def __init__(self, role: str, modality: str, extensions: str | None = None) -> None:
        self.role = role
        default = _DEFAULTS[modality] if role == modality and role in _DEFAULTS else f"{role}.txt;json.{role}"
        self.choices = [part.strip().lstrip(".") for part in (extensions or default).split(";")]
        self.files = {choice.lower() for choice in self.choices}
        self.files |= {"json" for choice in self.choices if choice.startswith("json.")}

    def __str__(self) -> str:
        return ";".join(self.choices)

    def stands_in(self, sample: Sample) -> bool:
        """Whether the sample has one of the files."""
        return not self.files.isdisjoint(sample.files)

    def image(self, sample: Sample, prepare: Callable[[ImageInput], PreparedImage]) -> np.ndarray:
        """The image's pixels as ``prepare`` gives them. Raises ``SampleError`` if there is none that can be read."""
        for choice in self.choices:
            if choice.lower() in sample.files:
                try:
                    return prepare(sample.read(choice.lower())).pixels
                except ImageError as error:
                    raise SampleError(self.role, str(error)) from error
        raise self.missing(sample)

    def captions(self, sample: Sample) -> list[str]:
        """The texts that are not blank, one or more, of the first choice with any. Raises ``SampleError`` if they
        cannot be read, ``NoTextError`` if there are none."""
        for value in self._values(sample):
            if texts := texts_of(self._texts(value)):
                return texts
        raise NoTextError(self.role, self.missing(sample, "no text").reason)

    def number(self, sample: Sample) -> float:
        """The number of the first choice with one. Raises ``SampleError`` if there is none."""
        for value in self._values(sample):
            with suppress(TypeError, ValueError, OverflowError):
                if abs(number := float(value)) <= _LARGEST:
                    return number
        raise self.missing(sample, "no number")

    def label(self, sample: Sample) -> str:
        """The label of the first choice with one. Raises ``SampleError`` if there is none."""
        for value in self._values(sample):
            try:
                if (label := label_of(value)) is not None:
                    return label
            except ValueError as error:
                raise SampleError(self.role, str(error)) from None
        raise self.missing(sample, "no label")

    def _values(self, sample: Sample) -> Iterator[Any]:
        """What the choices name, of those that the sample has."""
        return (value for choice in self.choices if (value := self._value(sample, choice)) is not None)

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
        except RecursionError:
            raise SampleError(self.role, "JSON that is nested too deeply") from None

    def missing(self, sample: Sample, empty: str = "") -> SampleError:
        """What to raise for a sample without the role, or whose files of it are ``empty``."""
        if empty and any(self._value(sample, choice) is not None for choice in self.choices):
            return SampleError(self.role, empty)
        have = ", ".join(sorted(sample.files)) or "no files"
        return SampleError(self.role, f"no {self}; the sample has {have}{self.advice([sample])}")

    def advice(self, samples: Sequence[Sample]) -> str:
        """What else may be wrong where the samples seem to lack the role; "" if nothing is."""
        if any(sample.apart for sample in samples):
            return (
                "; the files of a sample do not stand one after the other, as they must: sort the tar by name, as "
                "tar --sort=name does"
            )
        wanted = {choice.split(".")[0] if choice.startswith("json.") else choice for choice in self.files}
        for sample in samples:
            for extension in sample.files:
                key, _, last = extension.rpartition(".")
                if key and last in wanted:
                    name = f"{sample.key}.{extension}"
                    return (
                        f"; a sample's key ends at the first dot of a file's name, so that {name} has the extension "
                        f"{extension}: rename it, for example to {sample.key}_{key.replace('.', '_')}.{last}"
                    )
        return ""


def require_columns(shards: Sequence[str], columns: Sequence[ShardColumn], cure: str = "") -> None:
    """Raise ``ColumnError`` if a whole run would find nothing: the first local shard has a column in none of its first
    samples. ``cure`` says what to do about it."""
    shard = next(filter(is_local, shards), None)
    if shard is None:
        return
    first: list[Sample] = []
    try:
        first.extend(islice(read_shard(shard, wanted=()), _LOOKED_AT))
    except ShardError:
        return  # reported when the shard is read for training
    complete = any(all(column.stands_in(sample) for column in columns) for sample in first)
    for column in columns:
        if first and not complete and (lacking := [sample for sample in first if not column.stands_in(sample)]):
            advice = column.advice([*lacking, *_apart(shard)])
            if any(column.stands_in(sample) for sample in first) and not advice:
                continue
            have = extensions_of(first)
            raise ColumnError(
                f"{shard_name(shard)}: no sample has {column} for '{column.role}'; they have {have}"
                + (advice or f"; {cure or f'name what to read as data.columns.{column.role}'}"),
                column.role,
            )


def log_lacking(listed: Sequence[Sequence[str]], column: ShardColumn) -> None:
    """Log how many of the first samples have no text in a column that they need not have, if any.

    Args:
        listed: the shards of each source.
        column: of texts.
    """
    lacking, looked_at = map(sum, zip(*(_count_lacking(shards, column) for shards in listed), strict=True))
    if lacking == looked_at > 0:
        log.warning(
            "none of the first %d samples has a text in %s: they are used without %s; name what to read as "
            "data.columns.%s",
            *(looked_at, column, column.role, column.role),
        )
    elif lacking:
        log.info("%d of the first %d samples have no %s, and are used without", lacking, looked_at, column.role)


def _count_lacking(shards: Sequence[str], column: ShardColumn) -> tuple[int, int]:
    """How many of the first samples of the first local shard have no text, and how many were looked at."""
    shard = next(filter(is_local, shards), None)
    lacking = looked_at = 0
    try:
        for sample in islice(read_shard(shard, wanted=column.files), _LOOKED_AT) if shard else ():
            looked_at += 1
            try:
                column.captions(sample)
            except NoTextError:
                lacking += 1
            except SampleError:
                continue  # reported when the shard is read for training
    except ShardError:
        pass
    return lacking, looked_at


def extensions_of(samples: Sequence[Sample]) -> str:
    """The extensions of some samples, for messages."""
    found = sorted({extension for sample in samples for extension in sample.files})
    return ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")


def _apart(shard: str) -> Iterator[Sample]:
    """The first sample of a shard whose files do not stand together, if there is one."""
    try:
        yield from islice((sample for sample in read_shard(shard, wanted=()) if sample.apart), 1)
    except ShardError:
        return


def shard_captions(shards: Sequence[str], column: ShardColumn) -> Iterator[str]:
    """The captions of all samples, in the order of the shards; what cannot be read is left out.

    Raises:
        MmclError: nothing can be read of any shard.
    """
    found = False
    first: ShardError | SampleError | None = None
    where, reachable = "", Reachable()
    for shard in shards:
        try:
            for sample in read_shard(shard, wanted=column.files):
                reachable.read()
                try:
                    captions = column.captions(sample)
                except (SampleError, ShardError) as error:
                    first, where = first or error, where or sample.name
                    continue
                found = True
                yield from captions
        except ShardError as error:
            reachable.failed(shard, error)
            first, where = first or error, where or error.name
    if not found and first is not None:
        raise MmclError(f"{where}: {first.reason}; of {len(shards)} shards none gave a text")
