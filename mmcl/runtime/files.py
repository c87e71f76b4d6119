"""Files that appear whole or not at all, their checksums, JSON, and the cache folder."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmcl.runtime.errors import MmclError
from mmcl.runtime.printable import shortened

_claimed: set[Path] = set()  # temporary names in use by the threads of this process
_claims = threading.Lock()
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir(*parts: str) -> Path:
    """A folder under ``$MMCL_CACHE`` (default ``$XDG_CACHE_HOME/mmcl`` or ``~/.cache/mmcl``), made if absent.

    Raises:
        MmclError: it cannot be made or written to, or there is no home folder to put it in.
    """
    cure = "set MMCL_CACHE to a folder that can be written"
    try:
        folder = _cache_base().expanduser().joinpath(*parts)
    except RuntimeError:
        raise MmclError(f"the cache folder: there is no home folder; {cure}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = getattr(error, "strerror", None) or error
        raise MmclError(f"{folder}: the cache folder cannot be used ({reason}); {cure}") from None
    return folder


def _cache_base() -> Path:
    """Empty variables count as absent; a relative ``XDG_CACHE_HOME`` is ignored, as its specification says."""
    if own := os.environ.get("MMCL_CACHE", "").strip():
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return Path(shared if shared.startswith(("/", "~")) else "~/.cache") / "mmcl"


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_path(text: str | Path) -> Path:
    """``text`` as a path, which need not exist; ``~`` is expanded, except in the name of something that exists and is
    no home folder (``~backup.csv``).

    Raises:
        MmclError: it is no valid path: empty, too long, with a NUL in it, or in the home folder of an unknown user.
    """
    if not str(text):
        raise MmclError("'': an empty name, where a file or folder is to be named")
    try:
        path = Path(text)
        if path.parts and (path.parts[0] == "~" or not os.path.lexists(path)):
            path = path.expanduser()
        path.lstat()
    except (ValueError, RuntimeError) as error:  # RuntimeError: "~name" of nobody
        raise MmclError(f"'{shortened(str(text))}': can be no path ({error})") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise MmclError(f"'{shortened(str(text))}': too long for a path") from None
    return path


def folder_to_write(text: str | Path) -> Path:
    """The folder to write to that ``text`` names, with symbolic links resolved; it need not exist.

    Raises:
        MmclError: it is a file, a device or a pipe, or ``-``, which is standard output.
    """
    path = as_path(text)
    if str(path) == "-":
        raise MmclError("-: a folder cannot be written to standard output; name one")
    folder = Path(os.path.realpath(path))  # also of links whose target is missing
    if os.path.lexists(folder) and not folder.is_dir():
        raise MmclError(
            f"{path}: is {'a file' if folder.is_file() else 'no folder'}, where a folder is needed; choose another"
        )
    return folder


def existing_file(text: str | Path) -> Path | None:
    """The file of this name; None if there is none, or the name is no valid path."""
    try:
        path = as_path(text)
        return path if path.is_file() else None
    except (OSError, MmclError):
        return None


def existing_folder(text: str | Path) -> Path | None:
    """As :func:`existing_file`, of folders."""
    try:
        path = as_path(text)
        return path if path.is_dir() else None
    except (OSError, MmclError):
        return None


def is_stdout(path: Path) -> bool:
    """Whether ``path`` is standard output: ``-``, ``/dev/stdout`` and the like."""
    return _destination(path) == 1


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose content becomes that of ``path`` if the block ends without an error.

    A file is replaced in one step and keeps its permissions; of a symbolic link, the target is replaced. Devices,
    pipes, descriptors (``/dev/stdout``) and ``-``, which is standard output, are written to.

    Raises:
        MmclError: ``path`` is a folder.
        OSError: as writing to ``path`` would raise it, also for a read-only file.
    """
    destination = _destination(path)
    if isinstance(destination, int) or not _replaceable(destination):
        with TemporaryDirectory() as folder:
            complete = Path(folder) / "content"
            yield complete
            _send(complete, destination)
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(destination)
    with _sibling(destination, "part") as temporary:
        try:
            yield temporary
            _keep_owner_and_mode(destination, temporary)
            try:
                temporary.replace(destination)
            except OSError as error:
                if error.errno != errno.EBUSY:  # a file that is mounted by itself, as into a container
                    raise
                _send(temporary, destination)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, unless: Path | None = None) -> Iterator[Path]:
    """Yield a new folder beside ``path`` that replaces ``path`` if the block ends without an error.

    A process that is killed at any moment leaves the old folder or the new one, complete. Its temporary folder is
    removed by the next process that writes to ``path``.

    Args:
        path: the folder to write.
        unless: a file in it; if it exists in the end, nothing is replaced, since another process was faster and others
            may be reading.

    Raises:
        MmclError: ``path`` is no folder, or cannot be replaced: the current folder, a parent of it, or a mount point.
    """
    path = folder_to_write(path)
    if path == Path.cwd() or path in Path.cwd().parents:
        raise MmclError(f"{path}: you are in this folder, so that it cannot be replaced; choose another")
    if os.path.ismount(path):
        raise MmclError(f"{path}: is a mount point, which cannot be replaced; choose a folder in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    with _sibling(path, "part") as temporary:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            if unless is None or not unless.is_file():
                _keep_owner_and_mode(path, temporary)
                replace_folder(temporary, path, unless)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside the file ``path``, for what is kept on disk while that is written.

    It is removed at the end of the block; if the process is killed, by the next one that writes ``path``.
    """
    path = path.absolute()
    with _sibling(path, "part") as temporary:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path, unless: Path | None = None) -> None:
    """Rename the folder ``new`` to ``path``, and then delete the folder that had this name."""
    while unless is None or not unless.is_file():
        try:
            new.rename(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A full folder cannot be replaced by one rename. Swapped in one step, the name is never missing; where the
        # file system cannot do that, a process killed between two renames leaves the old one, which
        # _remove_leftovers restores.
        if _swap(new, path):
            shutil.rmtree(new, ignore_errors=True)
            return
        with _sibling(path, "old") as old:
            path.rename(old)
            new.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        return


def remove_folder(path: Path) -> None:
    """Delete a folder so that no process finds a part of it under its name, even if this one is killed meanwhile."""
    with _sibling(path, "part") as doomed:
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _replaceable(path: Path) -> bool:
    """Whether ``path`` is missing, or a file in a folder that can be written to."""
    if path.is_dir():
        raise MmclError(f"{path}: is a folder; name a file")
    if not path.exists():
        return True
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "read-only", str(path))
    return path.is_file() and os.access(path.parent, os.W_OK)


@contextmanager
def _sibling(path: Path, kind: str) -> Iterator[Path]:
    """A hidden temporary name beside ``path``, of this thread alone: ``.NAME.PROCESS.part``."""
    with _claims:
        names = (f"{_hidden(path)}{os.getpid()}{again}.{kind}" for again in ("", *(f"-{n}" for n in range(1, 1000))))
        temporary = next(path.with_name(name) for name in names if path.with_name(name) not in _claimed)
        _claimed.add(temporary)
    try:
        yield temporary
    except OSError as error:
        if error.errno in _DISK_FULL and error.filename is None:  # a write to an open file does not say where
            error.filename = str(path)
        raise
    finally:
        _claimed.discard(temporary)


def _hidden(path: Path) -> str:
    name = path.name if len(os.fsencode(path.name)) <= 200 else path.name[:50]  # 255 bytes are a file system's limit
    return f".{name}."


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders of processes that ended while they wrote ``path``, or restore the old
    folder that they had renamed."""
    pattern = re.compile(re.escape(_hidden(path)) + r"(\d+)(?:-\d+)?\.(part|old)")
    with os.scandir(path.parent) as entries:
        found = [match for entry in entries if (match := pattern.fullmatch(entry.name))]
    for match in found:
        left, of = path.with_name(match[0]), int(match[1])
        if left in _claimed or (of != os.getpid() and _is_running(of)):
            continue
        with suppress(OSError):  # another process was faster
            if match[2] == "old" and not path.exists():
                left.rename(path)
            elif left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _swap(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _keep_owner_and_mode(old: Path, new: Path) -> None:
    if old.exists():
        status = old.stat()
        with suppress(OSError):  # only root may give files away
            if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                os.chown(new, status.st_uid, status.st_gid)
        new.chmod(stat.S_IMODE(status.st_mode))


def _destination(path: Path) -> Path | int:
    """The target of ``path``, with symbolic links resolved; a number if that is a descriptor of this process."""
    if str(path) == "-":
        return 1
    path = path.absolute()
    for _ in range(40):
        folder = path.parent.resolve()
        if folder == Path(f"/proc/{os.getpid()}/fd") and path.name.isdigit():
            if not path.is_symlink():
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(path))
            return int(path.name)
        path = folder / path.name
        if not path.is_symlink():
            return path
        path = folder / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _send(file: Path, destination: Path | int) -> None:
    """Write the content of ``file`` to something that cannot be replaced."""
    with file.open("rb") as content:
        if destination == 1 and not hasattr(sys.stdout, "buffer"):  # a stand-in, as of a notebook
            sys.stdout.write(content.read().decode())
            return
        sys.stdout.flush()  # text printed earlier comes first
        if destination == 1:
            shutil.copyfileobj(content, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        with open(destination, "wb", closefd=isinstance(destination, Path)) as target:
            shutil.copyfileobj(content, target)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        MmclError: the file is damaged.
    """
    values = read_any_json(path)
    if not isinstance(values, dict):
        raise MmclError(f"{path}: damaged (not a JSON object); take a fresh copy")
    return values


def read_any_json(path: Path) -> Any:
    """The value in a JSON file: an object, a list or a single value.

    Raises:
        MmclError: the file is damaged, or may not be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise MmclError(f"{path}: there is no permission to read it; chmod +r, or ask its owner") from None
    except (OSError, ValueError, RecursionError) as error:  # deep nesting; a number of thousands of digits
        require_model_file(path)
        raise MmclError(f"{path}: damaged ({error}); take a fresh copy") from None


def require_model_file(path: Path) -> None:
    """Check the first bytes of a file of a model.

    Raises:
        MmclError: the file is missing, may not be read, is empty, or is a git-lfs pointer or a web page.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise MmclError(f"{path}: the file is missing; take a fresh copy") from None
    except PermissionError:
        raise MmclError(f"{path}: there is no permission to read it; chmod +r, or ask its owner") from None
    except OSError as error:
        raise MmclError(f"{path}: cannot be read ({error.strerror})") from None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        raise MmclError(f"{path}: the file is empty; take a fresh copy")
    if start.startswith(b"version https://git-lfs"):
        raise MmclError(f"{path}: a git-lfs pointer, not the file itself; run 'git lfs pull' in its folder")
    if re.match(rb"<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE):
        raise MmclError(f"{path}: a web page, not the file itself: the download went wrong; take a fresh copy")


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as indented JSON, by :func:`atomic_file`."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:  # half of a surrogate pair, as in a file name of another encoding, is escaped
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
