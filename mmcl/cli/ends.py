"""How a command ends: its exit code, and one line for whatever stopped it."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
import traceback
from pathlib import Path
from typing import TextIO

from mmcl.runtime.errors import MmclError
from mmcl.runtime.printable import fitted, printable, shortened

LONGEST_LINE = 2_000
"""Characters of an error's line."""
INTERRUPTED = 130
"""As a shell has it for SIGINT."""
NO_READER = 141
"""As a shell has it for SIGPIPE: what reads our output, such as ``head``, has enough."""

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|malloc|unable to (m?map|allocate)"
    r"|failed to map segment|can't start new thread|static TLS",
    re.I,
)


def prepare_streams() -> None:
    """Have stdout and stderr take all text: what they cannot encode is escaped, and what is closed swallows it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us; a file opened later must not get its number
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as we run
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end(error: BaseException | None, code: int = 0, *, debug: bool = False) -> int:
    """Say on stderr what went wrong, if anything did, write out what stdout still holds, and return the exit code."""
    nobody_reads = _nobody_reads()
    try:
        sys.stdout.flush()
    except OSError as failed:
        error = error or failed
        _silence(sys.stdout)
    # Typer makes a code of 1 of it, where it prints itself.
    if nobody_reads and (isinstance(error, BrokenPipeError) or (error is None and code == 1)):
        _silence(sys.stdout)
        return NO_READER
    if error is None:
        return code
    line, code = one_line(error)
    line = fitted(printable(line), sys.stderr)
    if code == INTERRUPTED and sys.stderr.isatty():
        line = f"\r{line}"  # over the ^C that a terminal shows
    lines = [*(printable(line) for line in traceback.format_exception(error)), line] if debug else [line]
    try:
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _silence(sys.stderr)
    return code


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose other end is closed."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # no file of the system
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _silence(stream: TextIO) -> None:
    """Let go what ``stream`` still holds, which Python would try to write once more when it ends."""
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def one_line(error: BaseException) -> tuple[str, int]:
    """One line and an exit code: 2 for what the user can mend, 1 for what nobody foresaw."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; what is on disk is complete", INTERRUPTED
    if isinstance(error, MmclError):
        return f"error: {_line(error)}", error.exit_code
    if _lacks_memory(error):
        reason = f" ({_line(error, 300)})" if str(error) else ""
        cure = "lower the batch size, training.micro_batch or data.workers, or raise the limit of this process"
        return f"error: not enough memory{reason}; {cure}; --debug shows where", 2
    if isinstance(error, RecursionError):
        return "error: something that was read is nested too deeply; --debug shows what", 2
    if isinstance(error, OSError):
        name = getattr(error, "filename", None)
        where = f" ({name})" if name else ""
        if error.errno == errno.ENOSPC:
            cure = "free some space, then run the same command again (a training run with --resume)"
            return f"error: the disk is full{where}; {cure}", 2
        if error.errno in (errno.EMFILE, errno.ENFILE):
            cure = "raise the limit (ulimit -n 4096), or lower data.workers"
            return f"error: too many open files{where}; {cure}", 2
        if error.strerror and name is not None:
            return f"error: {shortened(str(name))}: {error.strerror}; --debug shows where", 2
        return f"error: {_line(error)}; --debug shows where", 2
    kind = type(error).__name__
    return f"error: unforeseen {kind}: {_line(error)}; --debug shows the traceback, which a bug report needs", 1


def _lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of Python, NumPy, Arrow, torch, FAISS or the loader of libraries."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error)) is not None


def _line(error: BaseException, limit: int = LONGEST_LINE) -> str:
    """The message in one line; of what is not ours, its first one."""
    text = str(error)
    if not isinstance(error, MmclError):
        text = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    return shortened(text, limit)
