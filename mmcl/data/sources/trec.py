"""TREC's files: judgements (qrels), ``query iteration document grade``, and runs, ``query Q0 document rank score tag``;
each compressed (``.gz``) or not. Judgements may have BEIR's columns as well: query, document and grade."""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from mmcl.data.sources.files import open_bytes
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, atomic_file, existing_file, existing_folder

Qrels = dict[str, dict[str, float]]
"""{query id: {document id: grade}}; above 0 is relevant, the higher the better."""

_RUNS = (".trec", ".run")  # suffixes of files that hold a run, whatever is in them


@dataclass(frozen=True)
class Run:
    """What a system found: for each query documents with scores, the higher the better."""

    name: str
    found: dict[str, dict[str, float]]
    """{query id: {document id: score}}."""


def read_lines(file: Path, where: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1. Only line feeds end a line: text may hold the others.

    Raises:
        MmclError: no such file, which ``where`` then says where to expect, or one that is not UTF-8.
    """
    if not file.is_file():
        raise MmclError(f"{file}: no such file; {where}")
    try:
        with open_bytes(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise MmclError(f"{file}: not a UTF-8 file ({error}); save it as UTF-8") from error


def read_qrels(file: str | Path, ids: Set[str] = frozenset()) -> Qrels:
    """Judgements in TREC's four columns or BEIR's three, with a line that names the columns or without.

    Args:
        file: its columns separated by tabs, blanks or commas.
        ids: of queries and documents, where they are known: a first line that has one of them is no header.

    Raises:
        MmclError: no such file, a line that cannot be read, or a document judged twice, differently, for one query.
    """
    path = as_path(file)
    qrels: Qrels = {}
    for number, line in read_lines(path, "judgements are a file of query, document and grade"):
        fields = _fields(line)
        if number == 1 and _is_header(fields, ids):
            continue
        grade = _number(fields[-1]) if len(fields) in (3, 4) else None
        if grade is None or not math.isfinite(grade):
            raise MmclError(
                f"{path}: line {number} is not query id, document id and grade, separated by tabs, blanks or commas, "
                "nor TREC's query id, iteration, document id and grade"
            )
        query, document = fields[0], fields[-2]
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise MmclError(f"{path}: line {number} judges document '{document}' for query '{query}' a second time")
    if not qrels:
        raise MmclError(f"{path}: there are no judgements")
    return qrels


def is_run(name: str | Path) -> bool:
    """Whether this is a file that holds a run: by its suffix, ``.trec`` or ``.run``, also of one that is missing, or by
    its first line."""
    file = existing_file(name)
    if str(name).lower().removesuffix(".gz").endswith(_RUNS) and existing_folder(name) is None:
        return True
    if file is None:
        return False
    try:
        with open_bytes(file) as lines:
            first = lines.readline(1000).decode().split()
    except (MmclError, UnicodeDecodeError):
        return False
    return len(first) == 6 and _number(first[3]) is not None and _number(first[4]) is not None


def read_run(file: str | Path) -> Run:
    """A run. As in trec_eval the scores order it, and the column of ranks is not read.

    Raises:
        MmclError: no such file, a line that cannot be read, a score that is not a finite number, or a document that
            stands twice for one query.
    """
    path = as_path(file)
    found: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path, "a run is a file of: query Q0 document rank score tag"):
        fields = line.split()
        score = _number(fields[4]) if len(fields) == 6 else None
        if score is None or not math.isfinite(score):
            raise MmclError(
                f"{path}: line {number} is not TREC's query, Q0, document, rank, score and tag: '{line:.80}'"
            )
        documents = found.setdefault(fields[0], {})
        if fields[2] in documents:
            raise MmclError(f"{path}: line {number}: document '{fields[2]}' stands twice for query '{fields[0]}'")
        documents[fields[2]] = score
    if not found:
        raise MmclError(f"{path}: the run is empty")
    return Run(str(file), found)


def write_run(file: str | Path, found: Mapping[str, Mapping[str, float]], tag: str = "mmcl") -> None:
    """Write a run, its documents in the order in which trec_eval ranks them; completely or not at all.

    Args:
        file: compressed if its name ends in ``.gz``.
        found: {query id: {document id: score}}.
        tag: what the system is called; blanks in it become ``-``.

    Raises:
        MmclError: an id that is empty or has a blank in it, which the format cannot hold.
    """
    for query, documents in found.items():
        for key in (query, *documents):
            if len(str(key).split()) != 1 or str(key) != str(key).strip():
                raise MmclError(f"{file}: the id {key!r} is empty or has a blank in it, which a TREC run cannot hold")
    tag = re.sub(r"\s+", "-", tag.strip()) or "mmcl"
    with atomic_file(as_path(file)) as temporary:
        # Without a time in its head, equal runs are equal files.
        lines = (line.encode() for line in _run_lines(found, tag))
        if str(file).lower().endswith(".gz"):
            with temporary.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
                packed.writelines(lines)
        else:
            with temporary.open("wb") as plain:
                plain.writelines(lines)


def _run_lines(found: Mapping[str, Mapping[str, float]], tag: str) -> Iterator[str]:
    for query, documents in found.items():
        ranked = sorted(((score, str(document)) for document, score in documents.items()), reverse=True)
        for rank, (score, document) in enumerate(ranked, 1):
            yield f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"  # nine digits hold a float32


def _fields(line: str) -> list[str]:
    """Three columns, or TREC's four, separated by tabs, else by blanks, else by commas: an id may have blanks where
    tabs separate."""
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) in (3, 4):
        return fields
    fields = line.split()
    return fields if len(fields) in (3, 4) else [field.strip() for field in next(csv.reader([line]))]


def _is_header(fields: Sequence[str], ids: Set[str]) -> bool:
    """Whether these name columns, such as query-id, corpus-id and score, and are no broken judgement."""
    named = len(fields) in (3, 4) and all(fields) and _number(fields[-1]) is None
    return named and ids.isdisjoint((fields[0], fields[-2]))


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None
