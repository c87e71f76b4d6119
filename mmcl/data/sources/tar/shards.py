"""WebDataset tar shards: which there are, the samples in one, how many, and writing them.

In a shard the files of a sample stand one after the other and share their *key*, the path up to the first dot of the
file's name; the rest of the name is the *extension* (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import lzma
import os
import re
import select
import signal
import subprocess
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO, TypeAlias

from mmcl.data.identity import stable_hash
from mmcl.data.images import image_suffixes
from mmcl.data.rows import path_of_url
from mmcl.data.sources.files import path_text
from mmcl.data.sources.image_folders import is_junk
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.files import as_path, atomic_file, cache_dir, existing_file, existing_folder
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")

_TAR = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)$", re.IGNORECASE)
_TAR_IN_COMMAND = re.compile(r"[^\s/'\"=]+\.(?:tar\.gz|tar|tgz)\b", re.IGNORECASE)
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # two letters at least: C: is a drive
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")  # about the shard rather than of a sample
_CHUNK = 2**16
# Never forever: a host that does not answer, or no longer, ends the shard.
_CURL = [
    *("curl", "--fail", "--silent", "--show-error", "--location", "--globoff"),
    *("--connect-timeout", "20", "--retry", "3", "--retry-delay", "2", "--speed-limit", "1", "--speed-time", "60"),
]
_SILENCE = 60.0  # seconds; gsutil tries for hours
_UNREACHABLE = 3
_CURL_SCHEMES = ("ftp", "ftps", "http", "https", "scp", "sftp")
_CURL_WRITE_ERROR = 23
_PROGRAMS = {
    "s3": ("aws", "--cli-connect-timeout", "20", "--cli-read-timeout", "60", "s3", "cp", "{shard}", "-"),
    "gs": ("gsutil", "-o", "Boto:num_retries=3", "-o", "Boto:http_socket_timeout=20", "cat", "{shard}"),
    "ais": ("ais", "get", "{shard}", "-"),
}
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

    Two files with one extension cannot be told apart: of such a sample nothing can be read.

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


def is_shards(source: str | Path) -> bool:
    """Whether ``source`` names tar shards rather than a table, images or a data set on the hub."""
    text = str(source)
    if text.startswith("sample:"):
        return False
    if existing_file(text) is not None:
        return _TAR.search(text) is not None
    if (folder := existing_folder(text)) is not None:
        return bool(_in_folder(folder)) and not any(folder.glob("metadata.*"))
    if text.lower().startswith("file:") and not _TAR.search(text):
        return False
    return "://" in text or any(_TAR.search(part) or _is_command(part) for part in text.split("::"))


def list_shards(source: str | Path) -> list[str]:
    """The shards that ``source`` names: paths and URLs, in its order.

    ``source`` is a path, a URL, or ``pipe:COMMAND`` whose output is a tar; with braces for numbers
    (``train-{0000..0019}.tar``) and ``::`` between several; or a folder with ``.tar`` files.

    Raises:
        MmclError: a local shard is missing, the braces do not match, nothing reads such a URL, or there is a command
            and :func:`allow_pipes` was not called.
    """
    text = str(source)
    folder, file = existing_folder(text), existing_file(text)
    if file is not None:  # whatever braces are in its name
        return [str(file)]
    shards = _expanded(text) if folder is None else _in_folder(folder)
    _check_commands([shard for shard in shards if _is_command(shard)])
    for shard in shards:
        if not is_local(shard) and not _is_command(shard):
            _reading(shard)
    missing = [shard for shard in shards if is_local(shard) and not Path(shard).is_file()]
    if missing:
        raise MmclError(
            f"{text}: there is no shard {missing[0]} ({len(missing)} of {len(shards)} are missing); "
            "mend the path or its braces"
        )
    return shards


_pipes_allowed = False
_told: set[str] = set()


def allow_pipes() -> None:
    """Let :func:`list_shards` take ``pipe:COMMAND`` in this process.

    A command does whatever its author likes, and a config is passed around. Only who starts the process may say this.
    """
    global _pipes_allowed
    _pipes_allowed = True


def _is_command(shard: str) -> bool:
    return shard[:5].lower() == "pipe:"


def _check_commands(commands: Sequence[str]) -> None:
    if not commands:
        return
    first = shorten(commands[0], 200, placeholder=" …")
    if not _pipes_allowed:
        raise MmclError(
            f"{first}: this runs a command in a shell, with all your rights; if you trust whoever wrote it, say "
            "so with --allow-pipe (in Python: mmcl.data.sources.tar.shards.allow_pipes())"
        )
    if first not in _told:
        _told.add(first)
        log.warning("--allow-pipe: shell commands are run to read shards (%d): %s", len(commands), first)


def _expanded(text: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    try:
        return [_local_path(shard) if is_local(shard) else shard for shard in expand_urls(text)]
    except (ValueError, AssertionError) as error:  # unbalanced braces; ${NAME} without WDS_NAME
        raise MmclError(f"{text}: {error}") from None


def _in_folder(folder: Path) -> list[str]:
    """The tar files of a folder; of one that has other files, only if some are not compressed: a backup is no shard."""
    names = [path.name for path in sorted(folder.iterdir()) if not is_junk(path.name) and not path.is_dir()]
    tars = [name for name in names if _TAR.search(name)]
    shards = len(tars) == len(names) or any(name.lower().endswith(".tar") for name in tars)
    return [str(folder / name) for name in tars] if shards else []


def is_local(shard: str) -> bool:
    """Whether the shard is a file here, rather than a URL or a command."""
    return _URL.match(shard) is None


def _local_path(shard: str) -> str:
    return str(as_path(path_of_url(shard) if shard.lower().startswith("file:") else shard))


def shard_name(shard: str) -> str:
    """How messages and names of samples call a shard: the name of its file, or of the last tar in a command."""
    if not _is_command(shard):
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


def _reading(shard: str) -> list[str] | str:
    """The program and its arguments that write a remote shard to standard output; of ``pipe:`` the shell's command.

    Raises:
        MmclError: nothing reads such a URL.
    """
    if _is_command(shard):
        return shard[5:]
    scheme = shard.partition(":")[0].lower()
    if scheme == "hf":
        from huggingface_hub import HfFileSystem, get_token

        try:
            url = HfFileSystem().url(shard)
        except Exception as error:  # the hub's own
            raise MmclError(f"{shard}: {first_line(error)}") from None
        token = get_token()
        return [*_CURL, *(["--header", f"Authorization: Bearer {token}"] if token else []), "--url", url]
    if scheme in _CURL_SCHEMES:
        return [*_CURL, "--url", shard]
    if scheme in _PROGRAMS:
        return [part.format(shard=shard) for part in _PROGRAMS[scheme]]
    known = ", ".join(f"{name}://" for name in sorted([*_CURL_SCHEMES, *_PROGRAMS, "hf"]))
    raise MmclError(f"{shard}: tar shards are read from files and from {known}")


@contextmanager
def _opened(shard: str) -> Iterator[Any]:
    """The bytes of a shard. Whether a command failed is known at its end only, and then raised as ``OSError``."""
    if is_local(shard):
        with Path(shard).open("rb") as file:
            yield file
        return
    try:
        command = _reading(shard)
    except Exception as error:  # the hub's own, for hf://
        raise OSError(str(error)) from error
    shell = isinstance(command, str)
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                command, bufsize=0, shell=shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
            )
        except FileNotFoundError:
            raise OSError(f"{command[0]} is not installed, which reads {shard.partition(':')[0]}:// URLs") from None
        assert process.stdout is not None
        stream = io.BufferedReader(_Impatient(process.stdout, None if shell else _SILENCE), _CHUNK)
        try:
            yield stream
            while stream.read(_CHUNK):  # what pads the tar
                pass
        except GeneratorExit:
            raise
        except BaseException as error:
            process.stdout.close()
            if (
                isinstance(error, Exception)
                and not isinstance(error, TimeoutError)
                and (why := _failure(process, command, said, wait=1.0))
            ):
                raise OSError(why) from error
            raise
        else:
            if why := _failure(process, command, said):
                raise OSError(why)
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


class _Impatient(io.RawIOBase):
    """What a program writes, as long as it does not fall silent for ``seconds``."""

    def __init__(self, stream: Any, seconds: float | None) -> None:
        self._stream = stream
        self._seconds = seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._seconds is not None and not select.select([self._stream], [], [], self._seconds)[0]:
            raise TimeoutError(f"nothing came for {self._seconds:g} seconds")
        return int(self._stream.readinto(buffer))


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


def _failure(
    process: subprocess.Popen[bytes], command: list[str] | str, said: BinaryIO, wait: float | None = None
) -> str | None:
    """Why a command failed; None if it did not, or only for want of a reader."""
    try:
        code = process.wait(wait)
    except subprocess.TimeoutExpired:
        return None
    if code in (0, -signal.SIGPIPE, 128 + signal.SIGPIPE, _CURL_WRITE_ERROR):
        return None
    said.seek(0)
    lines = said.read()[-4096:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{command if isinstance(command, str) else command[0]}: exit {code} ({last})"


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
    under an extension of images (``jpg``, ``png``, …) text is the path of a file, as in tables. Its key is
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
