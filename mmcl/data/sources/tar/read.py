"""The samples of a tar shard.

In a shard the files of a sample stand one after the other and share their *key*, the path up to the first dot of the
file's name; the rest of the name is the *extension* (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import lzma
import os
import re
import tarfile
import weakref
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mmcl.data.sources.files import path_text
from mmcl.data.sources.tar.names import is_local, shard_name
from mmcl.data.sources.tar.remote import open_shard
from mmcl.runtime.errors import MmclError

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")  # about the shard rather than of a sample
_UNREACHABLE = 3
_DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class ShardError(Exception):
    """A shard that cannot be read further: what it is called (with the key, if known), and the reason."""

    def __init__(self, name: str, reason: object) -> None:
        self.name = name
        self.reason = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(f"{name}: {self.reason}")


class _File:
    """A local shard, open as long as something refers to it."""

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def read(self, start: int, size: int) -> bytes:
        self.file.seek(start)
        return self.file.read(size)


@dataclass(frozen=True, slots=True)
class _Place:
    """Content that is read when it is needed: a local shard is shuffled without holding its images in memory."""

    file: _File
    start: int
    size: int


_Content: TypeAlias = bytes | _Place | None


@dataclass(slots=True)
class Sample:
    """The files of one sample.

    Two files with one extension cannot be distinguished: of such a sample nothing can be read.

    Attributes:
        shard: name of the shard's file.
        key: what the files' names share.
        files: extension, in lower case, to the content: bytes, or where they are.
        doubled: an extension that two of the files have; empty if none.
        apart: whether other files of the key stand further up in the shard.
    """

    shard: str
    key: str
    files: dict[str, _Content]
    doubled: str = ""
    apart: bool = False

    @property
    def name(self) -> str:
        """What messages call the sample."""
        return path_text(f"{self.shard}:{self.key}")

    def read(self, extension: str) -> bytes:
        """The bytes of the file with this extension. Raises ``ShardError`` if they can no longer be read."""
        content = self.files[extension]
        if self.doubled:
            raise ShardError(
                self.name,
                f"two files '{self.doubled}' with this key, of which one would be lost; give each its own key",
            )
        if isinstance(content, _Place):
            try:
                data = content.file.read(content.start, content.size)
            except OSError as error:
                raise ShardError(self.name, error) from error
            if len(data) < content.size:
                raise ShardError(self.name, "the shard became shorter while it was read")
            return data
        if content is None:
            raise KeyError(f"{self.name}: '{extension}' was not asked for")
        return content


def read_shard(shard: str, wanted: Collection[str] | None = None) -> Iterator[Sample]:
    """The samples of a shard, in its order, as WebDataset groups them.

    Of a local file only the headers are read, and content when it is asked for. Of a stream, the files whose
    extensions are ``wanted`` (all if None) are held in memory.

    Raises:
        ShardError: the shard cannot be opened, or is damaged or cut off after the samples that were given.
    """
    name = shard_name(shard)
    sample: Sample | None = None
    keys: set[str] = set()
    try:
        for path, content in _files(shard, wanted):
            key, extension = _split(path)
            if key is None:
                continue
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = Sample(name, key, {}, apart=key in keys)
                keys.add(key)
            if extension in sample.files:
                sample.doubled = extension
            sample.files.setdefault(extension, content)
    except _DamageError as error:
        key, _ = _split(error.path)
        if sample is not None and sample.key != key:
            yield sample
        raise ShardError(name if key is None else f"{name}:{key}", error.reason) from error
    if sample is not None:
        yield sample


def _split(path: str) -> tuple[str | None, str]:
    """Key and extension; no key for what is no file of a sample."""
    match = None if _META.match(path) else _NAME.fullmatch(path)
    return (match[1], match[2].lower()) if match else (None, "")


class _DamageError(Exception):
    def __init__(self, path: str, reason: object) -> None:
        super().__init__(path, reason)
        self.path = path  # of the file that is not whole; "" if unknown
        self.reason = reason


def _files(shard: str, wanted: Collection[str] | None) -> Iterator[tuple[str, _Content]]:
    """Path and content of the regular files of a tar."""
    local = is_local(shard)
    at = ""
    try:
        seekable = local and not _compressed(shard)
        with open_shard(shard) as stream, tarfile.open(fileobj=stream, mode="r:" if seekable else "r|*") as tar:
            file = _File(shard) if seekable else None
            end = os.fstat(stream.fileno()).st_size if seekable else 0
            for member in _members(tar):
                if not member.isreg() or member.issparse():
                    continue
                at = member.name
                content: _Content = None
                if file is not None:
                    content = _Place(file, member.offset_data, member.size)
                    cut = member.offset_data + member.size > end
                else:
                    data = tar.fileobj.read(member.size)
                    cut = len(data) < member.size
                    content = data if wanted is None or _split(at)[1] in wanted else None
                if cut:
                    raise _DamageError(at, "the shard is cut off here")
                yield at, content
                at = ""
    except _DAMAGE as error:
        raise _DamageError(at, error) from error


def _compressed(path: str) -> bool:
    """By its first bytes: what its name ends in is what somebody called it."""
    with Path(path).open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member; unlike tarfile's own loop, which takes a damaged header for the end, it raises ``TarError``."""
    member: tarfile.TarInfo | None = tar.firstmember  # type: ignore[attr-defined]
    while member is not None:
        yield member
        tar.fileobj.seek(tar.offset)
        try:
            member = tarfile.TarInfo.fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("there is no end mark: it seems to be cut off") from error


class Reachable:
    """Gives up where the first shards of a source cannot be read over the network, rather than try thousands more."""

    def __init__(self) -> None:
        self._failed = 0

    def read(self) -> None:
        """A sample was read."""
        self._failed = -1

    def failed(self, shard: str, error: ShardError) -> None:
        """A shard cannot be read.

        Raises:
            MmclError: so were all that were tried before, and it is a remote one.
        """
        if self._failed < 0 or is_local(shard):
            return
        self._failed += 1
        if self._failed == _UNREACHABLE:
            raise MmclError(
                f"{error.name}: {error.reason}; the first {_UNREACHABLE} shards cannot be read: check the address, the "
                "network and the login"
            )
