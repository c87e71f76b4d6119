"""Pairs of sentences with the similarity that people gave them, from wherever they are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from mmcl.data.rows import Rows
from mmcl.data.sources import open_source
from mmcl.evaluation.tasks.sts_files import Labelled, original_files, read_original, text_lines
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import existing_file, existing_folder

log = logging.getLogger("mmcl")

HUB: dict[str, str] = {
    "STS12": "mteb/sts12-sts",
    "STS13": "mteb/sts13-sts",
    "STS14": "mteb/sts14-sts",
    "STS15": "mteb/sts15-sts",
    "STS16": "mteb/sts16-sts",
    "STSB": "mteb/stsbenchmark-sts",
    "SICKR": "mteb/sickr-sts",
}
"""The seven tasks of the SimCSE paper, in its order, and where the hub has them. The hub's SICKR is all 9,927 pairs of
SICK, as MTEB takes them; the paper, as SentEval, takes the 4,927 of the test split."""

_ALIASES = {
    "sentence1": ("sentence1", "sentence_A", "sentence_1", "text1"),
    "sentence2": ("sentence2", "sentence_B", "sentence_2", "text2"),
    "score": ("score", "similarity_score", "relatedness_score", "label"),
}
ROLES = tuple(_ALIASES)
"""Of the columns, under their own names."""

_UNNAMED = "the table"

Table: TypeAlias = "str | Path | Rows | pa.Table"


@dataclass(frozen=True)
class SentencePairs:
    """N labelled pairs, of one task or several."""

    name: str
    first: list[str]  # N
    second: list[str]  # N
    score: np.ndarray  # (N,) float64, the higher the more alike; NaN where the table has no scores
    task: np.ndarray  # (N,) the place in ``tasks``
    tasks: list[str]
    left_out: int = 0  # rows without two sentences and a score

    def __len__(self) -> int:
        return len(self.first)

    @property
    def fingerprint(self) -> str:
        """Equal for equal pairs."""
        content = json.dumps([self.first, self.second, self.score.tolist(), self.task.tolist(), self.tasks])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def open_sts(
    table: Table | None = None,
    *,
    split: str | None = "test",
    tasks: Sequence[str] = (),
    columns: Mapping[str, str] = {},
    scored: bool = True,
) -> SentencePairs:
    """Labelled pairs from a table.

    Args:
        table: a Parquet, CSV, JSON-lines or TSV file (of TSV a quote is a character like any other, as in the files of
            the STS tasks), a folder, the tasks' own files or a folder of them (``STS.input.NAME.txt`` with
            ``STS.gs.NAME.txt`` beside it, ``sts-test.csv``, ``SICK.txt``; SentEval's folders), the name of a data set
            on the hub, ``Rows``, or a ``pyarrow.Table``; without one, the seven tasks of ``HUB``. Columns are
            ``sentence1``, ``sentence2`` and ``score`` (or what SICK and GLUE call them), and where there are several
            tasks or splits in one table, ``task`` and ``split``.
        split: the part to read; a table without splits counts as a test split. None: all rows.
        tasks: the tasks to keep; all if empty.
        columns: what ``sentence1``, ``sentence2`` and ``score`` are called, where it is something else.
        scored: whether a pair needs a score; if not, a table without that column will do.

    Rows without two sentences and a score are left out, and their number is logged.

    Raises:
        MmclError: there is no such table, column, split or task, or no usable row.
    """
    if table is None:
        return _joined([open_sts(HUB[task], split=split) for task in tasks or HUB if _known(task, HUB, "the hub")])
    rows, chosen = _open(table, split)
    names = {role: columns.get(role) or _column(rows, role, options) for role, options in _ALIASES.items()}
    has_scores = scored or names["score"] in rows.column_names
    rows.require(names.values() if has_scores else (names["sentence1"], names["sentence2"]))
    if not (chosen or split is None or (split == "test" and "split" not in rows.column_names)):
        rows = rows.of_split(split)
    labels = _labels(rows, table)
    for task in tasks:
        _known(task, labels, rows.name)
    kept = [task in tasks for task in labels] if tasks else [True] * len(rows)
    first, second = (_texts(rows, names[role]) for role in ("sentence1", "sentence2"))
    scores = _numbers(rows.column(names["score"])) if has_scores else np.full(len(rows), np.nan)
    complete = [bool(a and b) for a, b in zip(first, second, strict=True)]
    usable = [i for i in range(len(rows)) if kept[i] and complete[i] and (not has_scores or math.isfinite(scores[i]))]
    left_out = sum(kept) - len(usable)
    wanted = "two sentences and a score" if has_scores else "two sentences"
    if not usable:
        raise MmclError(f"{rows.name}: no row has {wanted} in {', '.join(names.values())}")
    if left_out:
        log.warning("%s: %d of %d rows left out: they lack %s", rows.name, left_out, sum(kept), wanted)
    found = sorted(dict.fromkeys(labels[i] for i in usable), key=lambda task: [*HUB, task].index(task))
    place = {task: number for number, task in enumerate(found)}
    return SentencePairs(
        name=rows.name,
        first=[first[i] for i in usable],
        second=[second[i] for i in usable],
        score=scores[usable],
        task=np.array([place[labels[i]] for i in usable]),
        tasks=found,
        left_out=left_out,
    )


def _open(table: Table, split: str | None) -> tuple[Rows, bool]:
    """The rows, and whether ``split`` has chosen them."""
    if isinstance(table, Rows):
        return table, False
    if isinstance(table, pa.Table):
        return _as_rows(table, _UNNAMED), False
    path = existing_folder(table) or existing_file(table)
    if path is not None and (files := original_files(path)):
        pairs = read_original(files)
        columns = {name: [getattr(pair, name) for pair in pairs] for name in Labelled._fields}
        return _as_rows(pa.table(columns), str(table)), False
    if path is not None and path.is_file():
        return (_read_tsv(path) if path.suffix.lower() == ".tsv" else open_source(path)), False
    return open_source(table, split=split), split is not None


def _as_rows(table: pa.Table, name: str) -> Rows:
    if not len(table):
        raise MmclError(f"{name}: there are no rows")
    return Rows(datasets.Dataset(table), name=name, fingerprint="")


def _read_tsv(path: Path) -> Rows:
    """Not by way of a CSV reader: sentences may begin with a quote that nothing closes."""
    lines = [line.split("\t") for line in text_lines(path)]
    header = lines[0] if lines else []
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise MmclError(f"{path}: line {number} has {len(line)} fields, the header {len(header)}")
    if len(set(header)) < len(header):
        raise MmclError(f"{path}: the header names a column twice; rename one")
    columns = zip(*lines[1:], strict=True)
    return _as_rows(pa.table({name: list(column) for name, column in zip(header, columns, strict=False)}), str(path))


def _column(rows: Rows, role: str, options: Sequence[str]) -> str:
    return next((name for name in options if name in rows.column_names), role)


def _labels(rows: Rows, table: Table) -> list[str]:
    """The task of each row; of a table without such a column, its own name."""
    if "task" in rows.column_names:
        return [str(task) for task in rows.column("task")]
    names = {hub: task for task, hub in HUB.items()}
    own = table.name if isinstance(table, Rows) else _UNNAMED if isinstance(table, pa.Table) else str(table)
    return [names.get(own) or Path(own).stem] * len(rows)


def _known(task: str, tasks: Iterable[str], where: str) -> bool:
    known = set(tasks)
    if task not in known:
        raise MmclError(f"{where}: no task '{task}'; {nearest(task, known)}")
    return True


def _texts(rows: Rows, column: str) -> list[str]:
    return [value if isinstance(value, str) and value.strip() else "" for value in rows.texts(column)]


def _numbers(values: Sequence[Any]) -> np.ndarray:
    def number(value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            return math.nan

    return np.array([number(value) for value in values])


def _joined(parts: Sequence[SentencePairs]) -> SentencePairs:
    """Tables of one task each as one of several."""
    return SentencePairs(
        name="the hub's STS tasks",
        first=[text for part in parts for text in part.first],
        second=[text for part in parts for text in part.second],
        score=np.concatenate([part.score for part in parts]),
        task=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        tasks=[part.tasks[0] for part in parts],
        left_out=sum(part.left_out for part in parts),
    )
