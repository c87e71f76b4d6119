"""Making a run folder, or checking that one is what a run is to go on in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcl.config.load import to_yaml
from mmcl.config.schema import Config
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file
from mmcl.runtime.lock import entries, exclusive
from mmcl.training.checkpoint import list_checkpoints
from mmcl.training.run import Run, read_lines

SKIPPED = "skipped.jsonl"


class FolderError(MmclError):
    """A folder in which a run cannot begin, or be resumed, whatever its config."""


def prepare_folder(folder: Path, config: Config, resume: bool) -> list[Path]:
    """Make or check the run folder; returns the checkpoints to resume from. All processes call this together.

    A folder in which nothing was learned yet (a first start that failed, say) is taken over.

    Raises:
        FolderError: the folder is something else, holds a run that was not to be resumed, or none that could be.
        MmclError: the run there has another config.
    """
    distributed.barrier()
    ours = (folder / "config.yaml").is_file() and (folder / "features").is_dir()
    if folder.is_file() or (folder.is_dir() and entries(folder) and not ours):
        raise FolderError(f"{folder}: exists and is no run folder; choose another --out")
    checkpoints = list_checkpoints(folder)
    begun = has_begun(folder)
    distributed.barrier()  # nobody writes before everybody has looked
    if begun and not resume:
        raise FolderError(f"{folder}: holds a run already; continue it with --resume, or choose another --out")
    if begun:
        different = first_difference(_what_is_learned(Run(folder).config), _what_is_learned(config))
        if different:
            raise MmclError(
                f"{folder}: '{different}' is not as in its config.yaml, and the steps done depend on it; set it as it "
                "was, or start a new run with --out"
            )
    elif resume and not ours:
        raise FolderError(f"{folder}: no run to resume there; leave out --resume to start one")
    if distributed.rank() == 0:
        if not begun:
            for stale in ("tokenizer", "features", "mined"):
                shutil.rmtree(folder / stale, ignore_errors=True)
            for file in folder.glob("skipped*.jsonl"):
                file.unlink()
            write_config(folder, config)
        for unfinished in folder.glob("checkpoints/.step-*"):  # of a run that was killed while it wrote or removed one
            shutil.rmtree(unfinished, ignore_errors=True)
        for unfinished in folder.glob("mined/.step-*.part"):
            unfinished.unlink()
        (folder / "features").mkdir(exist_ok=True)
    distributed.barrier()
    return checkpoints


def write_config(folder: Path, config: Config) -> None:
    """Write ``config.yaml`` of a run folder."""
    with atomic_file(folder / "config.yaml") as beside:
        beside.write_text(to_yaml(config), encoding="utf-8")


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[bool]:
    """Within, no other training works in ``folder``; yields whether it is new.

    Of processes that were launched together, and may not have joined yet, the first sees to it for all of them.

    Raises:
        MmclError: another training is at work there, or it is a file.
    """
    if distributed.rank() or os.environ.get("RANK", "0") != "0":
        yield False
        return
    with exclusive(folder, "training in") as new:
        yield new


@contextmanager
def remove_on_failure(folder: Path, new: bool) -> Iterator[None]:
    """Within, a run is set up. If that fails, a ``new`` folder is removed again.

    A folder that lists skipped rows is kept, since a message has named the list.
    """
    try:
        yield
    except BaseException:
        if new and distributed.rank() == 0 and not (folder / SKIPPED).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def has_begun(folder: Path) -> bool:
    """Whether a run has learned in ``folder``, rather than just having been set up there."""
    return bool(list_checkpoints(folder) or read_lines(folder / "metrics.jsonl"))


def _what_is_learned(config: Config) -> dict[str, Any]:
    """The config without what the steps that are done do not depend on: how fast and how safely they were made, what
    was measured and written on the way, and how many more are to come."""
    return config.model_dump(
        mode="json",
        exclude={
            "name": True,
            "data": {"workers", "prefetch", "cache_gb"},
            "training": {"epochs", "log_every", "device", "compile", "timeout", "save_every", "keep", "trackers"},
            "evaluation": True,
        },
    )


def first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """The first key, dotted, at which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
            if found:
                return found
        return None
    return None if old == new else key


class SkippedList:
    """``skipped.jsonl`` of a run: every sample that was left out, once, with the reason.

    Processes other than the first write files of their own, which :meth:`merge` takes up at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SKIPPED
        rank = distributed.rank()
        self._mine = self.path if rank == 0 else self.path.with_name(f"skipped-{rank}.jsonl")
        self._known = {_key(line) for line in read_lines(self._mine)}

    def count(self, source: str) -> int:
        """Samples of ``source`` in this process's list."""
        return sum(of == source for of, *_ in self._known)

    def add(self, source: str, problems: list[dict[str, str]]) -> int:
        """Note what is not yet in the list; returns how many that were."""
        lines = [{"source": source, **problem} for problem in problems]
        new = {_key(line): line for line in lines if _key(line) not in self._known}
        if new:
            with self._mine.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in new.values())
            self._known |= new.keys()
        return len(new)

    def merge(self) -> None:
        """Take up the lists of the other processes, which must have stopped adding."""
        for other in sorted(self.path.parent.glob("skipped-*.jsonl")):
            for line in read_lines(other):
                self.add(str(line.pop("source", "")), [line])
            other.unlink()


def _key(line: dict[str, str]) -> tuple[str, ...]:
    return tuple(str(line.get(name, "")) for name in ("source", "id", "role"))
