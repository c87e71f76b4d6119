"""The bytes of a shard: of a file here, or of what a program writes that fetches it."""

from __future__ import annotations

import io
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mmcl.data.sources.tar.names import is_command, is_local
from mmcl.runtime.errors import MmclError, first_line

_CHUNK = 2**16
# Never forever: a host that does not answer, or no longer, ends the shard.
_CURL = [
    *("curl", "--fail", "--silent", "--show-error", "--location", "--globoff"),
    *("--connect-timeout", "20", "--retry", "3", "--retry-delay", "2", "--speed-limit", "1", "--speed-time", "60"),
]
_SILENCE = 60.0  # seconds; gsutil tries for hours
_CURL_SCHEMES = ("ftp", "ftps", "http", "https", "scp", "sftp")
_CURL_WRITE_ERROR = 23
_PROGRAMS = {
    "s3": ("aws", "--cli-connect-timeout", "20", "--cli-read-timeout", "60", "s3", "cp", "{shard}", "-"),
    "gs": ("gsutil", "-o", "Boto:num_retries=3", "-o", "Boto:http_socket_timeout=20", "cat", "{shard}"),
    "ais": ("ais", "get", "{shard}", "-"),
}


def reading_command(shard: str) -> list[str] | str:
    """The program and its arguments that write a remote shard to standard output; of ``pipe:`` the shell's command.

    Raises:
        MmclError: nothing reads such a URL.
    """
    if is_command(shard):
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
def open_shard(shard: str) -> Iterator[Any]:
    """The bytes of a shard. Whether a command failed is known at its end only, and then raised as ``OSError``."""
    if is_local(shard):
        with Path(shard).open("rb") as file:
            yield file
        return
    try:
        command = reading_command(shard)
    except Exception as error:  # the hub's own, for hf://
        raise OSError(str(error)) from error
    shell = isinstance(command, str)
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command, bufsize=0, shell=shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
            )
        except FileNotFoundError:
            raise OSError(f"{command[0]} is not installed, which reads {shard.partition(':')[0]}:// URLs") from None
        assert process.stdout is not None
        stream = io.BufferedReader(_TimedStream(process.stdout, None if shell else _SILENCE), _CHUNK)
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
                and (why := _failure(process, command, stderr, wait=1.0))
            ):
                raise OSError(why) from error
            raise
        else:
            if why := _failure(process, command, stderr):
                raise OSError(why)
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


class _TimedStream(io.RawIOBase):
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


def _failure(
    process: subprocess.Popen[bytes], command: list[str] | str, stderr: BinaryIO, wait: float | None = None
) -> str | None:
    """Why a command failed; None if it did not, or only for want of a reader."""
    try:
        code = process.wait(wait)
    except subprocess.TimeoutExpired:
        return None
    if code in (0, -signal.SIGPIPE, 128 + signal.SIGPIPE, _CURL_WRITE_ERROR):
        return None
    stderr.seek(0)
    lines = stderr.read()[-4096:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{command if isinstance(command, str) else command[0]}: exit {code} ({last})"
