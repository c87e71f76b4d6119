"""Faults on purpose: commands in processes that are killed, interrupted or short of disk, and damaged files."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MEMORY = 4 << 30  # bytes of address space that a command may take beyond what it starts with
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: exit code, or minus the number of the signal that ended it; None if it ran out of time.
        stderr: what it said there.
        seconds: how long it ran.
        events: writes, renames and removals that it asked the file system for.
    """

    code: int | None
    stderr: str
    seconds: float
    events: int

    def said_badly(self) -> str | None:
        """What is wrong with how the command reported: a traceback, a crash or no end; None if nothing is."""
        if self.code is None:
            return "no end within the time"
        if "Traceback (most recent call last)" in self.stderr:
            return f"a traceback: {self.stderr.strip().splitlines()[-1][:200]}"
        if self.code < 0:
            return f"died of signal {-self.code}"
        if self.code not in (0, 1, 2, 130):
            return f"exit code {self.code}"
        if self.code and not self.stderr.strip():
            return f"exit code {self.code} without a word"
        return None


@dataclass(frozen=True)
class Cut:
    """When a command is stopped, and how.

    Attributes:
        event: before this file-system event (counted from 1); None for none.
        after: after so many seconds; None for never.
        signal: what stops it.
    """

    event: int | None = None
    after: float | None = None
    signal: int = signal.SIGKILL


def run(
    *arguments: object,
    cut: Cut | None = None,
    timeout: float = 120.0,
) -> Outcome:
    """Run the command line in a fork of this process, which has imported everything and computed nothing.

    Args:
        arguments: of ``mmcl``.
        cut: when to stop it.
        timeout: seconds.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as counted:
        ready, begins = os.pipe()
        if (child := os.fork()) == 0:
            _child([str(argument) for argument in arguments], said.fileno(), counted.fileno(), begins, cut)
        os.close(begins)
        os.read(ready, 1)  # a signal before the command begins would test this script
        os.close(ready)
        start = time.perf_counter()
        stop_at = start + cut.after if cut and cut.after is not None else None
        code: int | None = None
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            now = time.perf_counter()
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            if cut is not None and stop_at is not None and now >= stop_at:
                os.kill(child, cut.signal)
                stop_at = None
            if now - start > timeout:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.002)
        said.seek(0)
        return Outcome(
            code, said.read().decode(errors="replace"), time.perf_counter() - start, os.fstat(counted.fileno()).st_size
        )


def _child(arguments: list[str], said: int, counted: int, begins: int, cut: Cut | None) -> None:
    """Never returns."""
    code = 70
    try:
        with Path("/proc/self/statm").open() as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard, to in ((0, nothing), (1, nothing), (2, said)):
            os.dup2(to, standard)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        sys.argv = ["mmcl", *arguments]
        from mmcl.cli import main

        _watch(counted, cut)
        os.close(begins)
        main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch(counted: int, cut: Cut | None) -> None:
    """Count what this process asks the file system to change, and stop it at the cut."""
    events = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal events
        if event in WRITES or (event == "open" and _writes(arguments)):
            events += 1
            os.write(counted, b".")
            if cut is not None and events == cut.event:
                os.kill(os.getpid(), cut.signal)

    sys.addaudithook(hook)


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(arguments[0]) != os.devnull


@contextlib.contextmanager
def small_disk(kilobytes: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of so many kilobytes: its folder, and a function that makes space. Needs the right to mount."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        yield (
            folder,
            lambda: subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True) and None,
        )
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def may_mount() -> bool:
    """Whether this user may mount a file system."""
    try:
        with small_disk(64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


TOKENS = [
    *(b"null", b"true", b"[", b"]", b"{", b"}", b'"', b"'", b",", b":", b"\n", b"\r", b"\x00", b"\x1b[2J", b"\xff"),
    *(b"NaN", b"1e999", b"-1", b"0", b"99999999999999999999", b"\\ud83d", b"\xed\xa0\xbd", b"../../etc", b"*a &a"),
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**40, 2**63, 10**30, 0.5, -1e308, float("inf"), float("nan")),
    *("", "x", "a" * 5_000, "../..", "\x1b[31m", "\x00", "null", "1", [], {}, [[]], [None], ["x"] * 3, {"x": "y"}),
]


def damage(data: bytes, random: random.Random) -> bytes:
    """``data`` with one to three random faults: flipped, overwritten, missing, doubled, moved or foreign bytes."""
    for _ in range(random.choice((1, 1, 2, 3))):
        at, length = random.randrange(len(data) + 1), random.choice((1, 2, 4, 16, 256, 4_096))
        match random.randrange(9):
            case 0 if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + random.randbytes(length) + data[at + length :]
            case 2:
                data = data[:at] + data[at + length :]
            case 3:
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
            case 4:
                data = data[:at]
            case 5:
                data = data[:at] + random.choice(TOKENS) + data[at:]
            case 6:
                data = data[:at] + bytes(length) + data[at + length :]
            case 7:
                data = (
                    data[:at] + random.choice((b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80")) + data[at + 4 :]
                )
            case _:
                data = random.choice(
                    (b"", b"\n", b"<!DOCTYPE html>\n", b"version https://git-lfs.github.com/spec/v1\n", data)
                )
    return data


def damage_file(path: Path, random: random.Random) -> None:
    """Damage a file: its bytes, or, where it holds JSON or YAML, also the values in it."""
    data = path.read_bytes()
    if path.suffix in (".json", ".yaml") and random.random() < 0.6:
        with contextlib.suppress(ValueError, yaml.YAMLError):
            load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
            path.write_text(dump(_other_value(load(data), random)), encoding="utf-8")
            return
    path.write_bytes(damage(data, random))


def _other_value(tree: Any, random: random.Random) -> Any:
    """A copy of a tree of lists and dicts, one node of which is another value, missing or wrapped in a list."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            visit(value)

    visit(tree)
    if not places:
        return random.choice(VALUES)
    node, key = random.choice(places)
    match random.randrange(4):
        case 0:
            del node[key]
        case 1:
            node[key] = [node[key]]
        case _:
            node[key] = random.choice(VALUES)
    return tree
