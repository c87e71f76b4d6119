"""The STS tasks in the files of their own: SemEval's inputs and gold standards, the STS benchmark, SICK; and the
folders in which SentEval (Conneau and Kiela 2018, arXiv:1803.05449) keeps them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from glob import escape
from pathlib import Path
from typing import NamedTuple

from mmcl.data.sources.files import open_bytes
from mmcl.data.sources.image_folders import is_junk
from mmcl.runtime.errors import MmclError

_INPUT = re.compile(r"STS(?P<year>20\d\d)?\.input\.(?P<part>.+)\.txt")
_BENCHMARK = re.compile(r"sts-(?P<split>train|dev|test)\.csv")
_SICK = re.compile(r"SICK(?:_(?P<split>train|trial|test(?:_annotated)?))?\.txt", re.IGNORECASE)
_YEAR = re.compile(r"STS-?(?:20)?(?P<year>1[2-7])", re.IGNORECASE)
_SPLITS = {"TRAIN": "train", "TRIAL": "dev", "TEST": "test", "TEST_ANNOTATED": "test"}


class Labelled(NamedTuple):
    """A pair of sentences as it stands in a file.

    Attributes:
        task: STS12 to STS17, STSB, SICKR, or the name of the folder.
        split: train, dev or test.
        score: what people said; None where nobody was asked, as of most pairs of 2015 and 2016.
    """

    task: str
    split: str
    sentence1: str
    sentence2: str
    score: float | None


def original_files(source: Path) -> list[Path]:
    """The files of the tasks at ``source``, one of them or a folder anywhere in which they are; none if it is else."""
    candidates: Iterable[Path] = [source] if source.is_file() else ()
    if source.is_dir():
        candidates = sorted(file for file in source.rglob("*") if file.suffix in (".txt", ".csv") and file.is_file())
    candidates = [file for file in candidates if not any(map(is_junk, file.relative_to(source).parts))]
    found = [file for file in candidates if _INPUT.fullmatch(file.name) or _is_benchmark(file) or _is_sick(file)]
    parts = Counter(file.parent for file in found if _INPUT.fullmatch(file.name))
    # Some years have a file of all parts beside these.
    found = [file for file in found if not (file.name.endswith(".input.ALL.txt") and parts[file.parent] > 1)]
    complete = {file.parent: file for file in found if file.name.lower() == "sick.txt"}  # its parts may lie beside it
    return [file for file in found if not _SICK.fullmatch(file.name) or complete.get(file.parent, file) == file]


def read_original(files: Iterable[Path]) -> list[Labelled]:
    """The pairs of such files, in order.

    Raises:
        MmclError: a file is damaged, or an input has no gold standard beside it that fits.
    """
    pairs: list[Labelled] = []
    for file in files:
        if _INPUT.fullmatch(file.name):
            pairs += _semeval(file)
        elif _BENCHMARK.fullmatch(file.name):
            pairs += _benchmark(file)
        else:
            pairs += _sick(file)
    return pairs


def text_lines(file: Path) -> list[str]:
    """The lines of a file, ended by line feeds alone; without those that are blank at its end.

    Raises:
        MmclError: it cannot be read, or is no UTF-8.
    """
    try:
        with open_bytes(file) as opened:
            lines = [line.rstrip("\r") for line in opened.read().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise MmclError(f"{file}: not a UTF-8 file ({error}); save it as UTF-8") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _semeval(file: Path) -> list[Labelled]:
    """Of a year: sentences, and other columns in some years; beside them, or in the folder beside theirs, a file of
    scores, blank where there are none."""
    gold = file.with_name(file.name.replace(".input.", ".gs.", 1))
    if not gold.is_file():
        beside = sorted(path for path in file.resolve().parent.parent.glob(f"*/{escape(gold.name)}") if path.is_file())
        if len(beside) != 1:
            raise MmclError(f"{file}: its scores are missing; {gold.name} belongs beside it")
        gold = beside[0]
    years = (_YEAR.search(part) for part in (file.name, *reversed(file.resolve().parent.parts)))
    task = next((f"STS{year['year']}" for year in years if year), file.resolve().parent.name)
    sentences, scores = [line.split("\t") for line in text_lines(file)], text_lines(gold)
    scores += [""] * (len(sentences) - len(scores))  # blank lines at the end are scores that are missing
    if len(sentences) != len(scores):
        raise MmclError(
            f"{file}: {len(sentences)} pairs, but {gold.name} has {len(scores)} scores; they do not belong together"
        )
    split = "train" if "train" in file.parent.name.lower() else "test"
    pairs = []
    for number, (fields, score) in enumerate(zip(sentences, scores, strict=True), 1):
        if len(fields) < 2:
            raise MmclError(f"{file}: line {number} has no two sentences, separated by a tab")
        pairs.append(
            Labelled(task, split, fields[0], fields[1], _score(score, gold, number) if score.strip() else None)
        )
    return pairs


def _benchmark(file: Path) -> list[Labelled]:
    """Genre, file, year, number, score and two sentences, and other columns, without a header or quotes."""
    found = _BENCHMARK.fullmatch(file.name)
    assert found is not None, "the caller looks"
    pairs = []
    for number, line in enumerate(text_lines(file), 1):
        fields = line.split("\t")
        if len(fields) < 7:
            raise MmclError(
                f"{file}: line {number} has {len(fields)} fields; the STS benchmark has 7, separated by tabs"
            )
        pairs.append(Labelled("STSB", found["split"], fields[5], fields[6], _score(fields[4], file, number)))
    return pairs


def _is_benchmark(file: Path) -> bool:
    """Whether it is the original, and not a table of somebody's own by that name."""
    return bool(_BENCHMARK.fullmatch(file.name)) and len(_first(file).split("\t")) >= 7 and "score" not in _first(file)


def _is_sick(file: Path) -> bool:
    """Whether it is one of SICK's files, and one with scores."""
    header = _first(file).split("\t") if _SICK.fullmatch(file.name) else []
    return "sentence_A" in header and any(name.strip() == "relatedness_score" for name in header)


def _first(file: Path) -> str:
    with open_bytes(file) as opened:
        return opened.readline(1 << 16).decode("utf-8-sig", "replace")


def _sick(file: Path) -> list[Labelled]:
    """With a header; the split is a column, or in the file's name."""
    header, *lines = [line.split("\t") for line in text_lines(file)]
    wanted = ("sentence_A", "sentence_B", "relatedness_score")
    if missing := [name for name in wanted if name not in header]:
        raise MmclError(f"{file}: SICK's files have a column {missing[0]}; this one has {', '.join(header)}")
    found = _SICK.fullmatch(file.name)
    assert found is not None, "the caller looks"
    named = _SPLITS.get((found["split"] or "").upper(), "test")
    pairs = []
    for number, fields in enumerate(lines, 2):
        if len(fields) != len(header):
            raise MmclError(f"{file}: line {number} has {len(fields)} fields, the header {len(header)}")
        row = dict(zip(header, fields, strict=True))
        split = _SPLITS.get(row.get("SemEval_set", "").strip().upper(), named)
        score = _score(row["relatedness_score"], file, number)
        pairs.append(Labelled("SICKR", split, row["sentence_A"], row["sentence_B"], score))
    return pairs


def _score(text: str, file: Path, number: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise MmclError(f"{file}: line {number}: '{text[:40]}' is no score")
    return score
