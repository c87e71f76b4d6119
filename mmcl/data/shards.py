"""WebDataset tar shards: which there are, the samples in one, how many, and writing them.

In a shard the files of a sample stand one after the other and share their *key*, the path up to the first dot of the
file's name; the rest of the name is the *extension* (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import tarfile
import weakref
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mmcl.data.identity import stable_hash
from mmcl.data.images import image_suffixes
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, cache_dir
from mmcl.runtime.progress import progress

_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_TAR_IN_COMMAND = re.compile(r"[^\s/'\"=]+\.(?:tar\.gz|tar|tgz)\b", re.IGNORECASE)
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # two letters at least: C: is a drive
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")  # about the shard rather than of a sample
_CHUNK = 2**16
_DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


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
    """Content that is read when it is needed: a local shard is shuffled without holding its pictures in memory."""

    file: _File
    start: int
    size: int


_Content: TypeAlias = bytes | _Place | None


@dataclass(slots=True)
class Sample:
    """The files of one sample.

    Attributes:
        shard: name of the shard's file.
        key: what the files' names share.
        files: extension, in lower case, to the content: bytes, or where they are.
    """

    shard: str
    key: str
    files: dict[str, _Content]

    @property
    def name(self) -> str:
        """What messages call the sample."""
        return f"{self.shard}:{self.key}"

    def read(self, extension: str) -> bytes:
        """The bytes of the file with this extension. Raises ``ShardError`` if they can no longer be read."""
        content = self.files[extension]
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


def is_shards(source: str | Path) -> bool:
    """Whether ``source`` names tar shards rather than a table, pictures or a data set on the hub."""
    text = str(source)
    if text.startswith("sample:"):
        return False
    if _is_file(text):
        return _TAR.search(text) is not None
    if _TAR.search(text) or text.startswith("pipe:") or "://" in text:
        return True
    folder = Path(text).expanduser()
    return folder.is_dir() and bool(_in_folder(folder)) and not any(folder.glob("metadata.*"))


def list_shards(source: str | Path) -> list[str]:
    """The shards that ``source`` names: paths and URLs, in its order.

    ``source`` is a path, a URL, or ``pipe:COMMAND`` whose output is a tar; with braces for numbers
    (``train-{0000..0019}.tar``) and ``::`` between several; or a folder with ``.tar`` files.

    Raises:
        MmclError: a local shard is missing, or the braces do not match.
    """
    text = str(source)
    folder = Path(text).expanduser()
    if "://" not in text and folder.is_dir():
        return _in_folder(folder)
    if _is_file(text):  # whatever braces are in its name
        return [str(folder)]
    from webdataset.shardlists import expand_urls

    try:
        shards = [_local_path(shard) if is_local(shard) else shard for shard in expand_urls(text)]
    except (ValueError, AssertionError) as error:  # unbalanced braces; ${NAME} without WDS_NAME
        raise MmclError(f"{text}: {error}") from None
    missing = [shard for shard in shards if is_local(shard) and not Path(shard).is_file()]
    if missing:
        raise MmclError(
            f"{text}: there is no shard {missing[0]} ({len(missing)} of {len(shards)} are missing); "
            "mend the path or its braces"
        )
    return shards


def _is_file(path: str) -> bool:
    try:
        return Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # a command is too long for a path
        return False


def _in_folder(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir()) if path.suffix == ".tar" and path.is_file()]


def is_local(shard: str) -> bool:
    """Whether the shard is a file here, rather than a URL or a command."""
    return _URL.match(shard) is None


def _local_path(shard: str) -> str:
    return str(Path(re.sub("^file:(//)?", "", shard)).expanduser())


def shard_name(shard: str) -> str:
    """How messages and names of samples call a shard: the name of its file, or of the last tar in a command."""
    if not shard.startswith("pipe:"):
        return re.split(r"[?#]", shard)[0].rstrip("/").split("/")[-1]
    tars = _TAR_IN_COMMAND.findall(shard)
    return tars[-1] if tars else f"pipe-{stable_hash(shard) % 2**32:08x}"


def read_shard(shard: str, wanted: Collection[str] | None = None) -> Iterator[Sample]:
    """The samples of a shard, in its order, as WebDataset groups them.

    Of a local file only the headers are read, and content when it is asked for. Of a stream, the files whose
    extensions are ``wanted`` (all if None) are held in memory.

    Raises:
        ShardError: the shard cannot be opened, or is damaged or cut off after the samples that were given.
    """
    name = shard_name(shard)
    sample: Sample | None = None
    try:
        for path, content in _files(shard, wanted):
            key, extension = _split(path)
            if key is None:
                continue
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = Sample(name, key, {})
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
    seekable = local and shard.lower().endswith(".tar")
    at = ""
    try:
        with _opened(shard) as stream, tarfile.open(fileobj=stream, mode="r:" if seekable else "r|*") as tar:
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


@contextmanager
def _opened(shard: str) -> Iterator[Any]:
    if is_local(shard):
        with Path(shard).open("rb") as file:
            yield file
        return
    from webdataset import gopen

    # gopen knows no s3; its documentation pipes from the command line client, too.
    stream = gopen(f"pipe:aws s3 cp {shlex.quote(shard)} -" if shard.startswith("s3://") else shard)
    try:
        yield stream
    except BaseException:
        with suppress(OSError):  # the command fails for want of a reader
            stream.close()
        raise
    while stream.read(_CHUNK):  # what pads the tar
        pass
    stream.close()  # raises if the command failed


def count_samples(shards: Sequence[str], show_progress: bool | None = None) -> int:
    """How many samples local ``shards`` hold, by their headers.

    The numbers are kept in the cache folder ``shards`` for files of the same path, size and time of change. What lies
    behind damage is not counted.

    Raises:
        MmclError: one of the shards is not a local file.
    """
    remote = [shard for shard in shards if not is_local(shard)]
    if remote:
        raise MmclError(f"{remote[0]}: its samples cannot be counted; state how many there are as data.train.samples")
    states = {shard: [stat.st_size, stat.st_mtime_ns] for shard in shards for stat in [Path(shard).stat()]}
    names = hashlib.blake2b(repr(sorted(map(os.path.abspath, shards))).encode(), digest_size=16).hexdigest()
    cache = cache_dir("shards") / f"{names}.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    counts = {shard: known[shard] for shard in states if known.get(shard, [])[:2] == states[shard]}
    if len(counts) < len(states):
        with progress("count samples", len(states), "shards", show_progress) as advance:
            for shard in states.keys() - counts.keys():
                counts[shard] = [*states[shard], _count(shard)]
                advance(1)
        with atomic_file(cache) as beside:
            beside.write_text(json.dumps(counts), encoding="utf-8")
    return sum(counts[shard][2] for shard in shards)


def _count(shard: str) -> int:
    count = 0
    try:
        for _ in read_shard(shard, wanted=()):
            count += 1
    except ShardError:
        pass  # told when it is read to learn from
    return count


def write_shards(rows: Iterable[Mapping[str, Any]], folder: str | Path, per_shard: int = 1000) -> list[Path]:
    """Write ``rows`` into ``folder`` as shards ``00000.tar``, ``00001.tar``, … of ``per_shard`` samples each.

    A row maps extensions to content: bytes as they are, the file of a ``Path``, text as UTF-8, anything else as JSON;
    under an extension of pictures (``jpg``, ``png``, …) text is the path of a file, as in tables. Its key is
    ``__key__``, or its number. Two writings of the same rows give the same bytes.
    """
    folder = Path(folder)
    shards: list[Path] = []
    pending: list[tuple[str, Mapping[str, Any]]] = []

    def flush() -> None:
        path = folder / f"{len(shards):05d}.tar"
        with atomic_file(path) as beside, tarfile.open(beside, "w") as tar:
            for key, row in pending:
                for extension, content in row.items():
                    if extension != "__key__":
                        data = _encoded(extension, content)
                        member = tarfile.TarInfo(f"{key}.{extension}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        shards.append(path)
        pending.clear()

    for number, row in enumerate(rows):
        pending.append((str(row.get("__key__", f"{number:09d}")), row))
        if len(pending) == per_shard:
            flush()
    if pending:
        flush()
    return shards


def _encoded(extension: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, Path) or (isinstance(content, str) and f".{extension.lower()}" in image_suffixes()):
        return Path(content).read_bytes()
    return (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode("utf-8")
