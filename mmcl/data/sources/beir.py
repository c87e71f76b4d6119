"""Retrieval tasks in BEIR's layout (Thakur et al. 2021, arXiv:2104.08663): ``corpus.jsonl``, ``queries.jsonl`` and
``qrels/SPLIT.tsv`` in one folder; each compressed (``.gz``) or not, and the judgements in BEIR's columns or TREC's."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.data.sources.image_folders import is_junk
from mmcl.data.sources.trec import read_lines, read_qrels
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import as_path, existing_folder

log = logging.getLogger("mmcl")
_LAYOUT = "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"
_JUDGEMENTS = (".tsv", ".csv", ".txt", ".qrels", ".trec")


@dataclass(frozen=True)
class Beir:
    """The documents, the queries of one split, and which documents are right for which query."""

    name: str
    corpus: dict[str, str]
    """Id to title and text, joined by a space."""
    queries: dict[str, str]
    """Id to text, of the queries that the split judges."""
    qrels: dict[str, dict[str, float]]
    """{query id: {document id: grade}}; above 0 is relevant, the higher the better."""
    empty_documents: int = 0
    """Documents with neither title nor text: left out."""
    empty_queries: int = 0
    """Judged queries without text: left out."""
    unknown_documents: int = 0
    """Judgements of documents that the corpus lacks: never found."""
    unknown_queries: int = 0
    """Judged queries that ``queries.jsonl`` lacks: left out."""

    @property
    def queries_in_corpus(self) -> int:
        """Queries whose id is a document's as well."""
        return len(self.queries.keys() & self.corpus.keys())

    @property
    def coincidences(self) -> int:
        """How many of these do not share a text with that document, so that the ids may be equal by chance."""
        both = self.queries.keys() & self.corpus.keys()
        return sum(self.queries[key] not in self.corpus[key] for key in both)

    @property
    def fingerprint(self) -> str:
        """Equal for equal tasks."""
        content = json.dumps([self.corpus, self.queries, self.qrels]).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def is_beir(source: str | Path) -> bool:
    """Whether ``source`` is a folder of that layout, or of most of it."""
    folder = existing_folder(source)
    if folder is None:
        return False
    parts = [_packed(folder / name).is_file() for name in ("corpus.jsonl", "queries.jsonl")]
    return sum([*parts, (folder / "qrels").is_dir()]) > 1


def open_beir(folder: str | Path, split: str | None = None) -> Beir:
    """Read a folder; ``split`` names the file in ``qrels/`` and may be left out where there is only one.

    What is left out, and what the judgements name but the folder lacks, is counted and logged.

    Raises:
        MmclError: there is no such folder, file or split; a line cannot be read; an id stands twice; or the judgements
            fit none of the queries or of the documents.
    """
    path = as_path(folder)
    if not path.is_dir():
        raise MmclError(f"{folder}: no such folder; {_LAYOUT}")
    judged = _split_file(path, split)
    documents, all_queries = _texts(_packed(path / "corpus.jsonl")), _texts(_packed(path / "queries.jsonl"))
    qrels = read_qrels(judged, documents.keys() | all_queries.keys())
    corpus = {key: text for key, text in documents.items() if text}
    queries = {key: all_queries[key] for key in qrels if all_queries.get(key)}
    unknown = [document for grades in qrels.values() for document in grades if document not in documents]
    strangers = [query for query in qrels if query not in all_queries]
    beir = Beir(
        name=f"{folder} ({_split_of(judged)})",
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        empty_documents=len(documents) - len(corpus),
        empty_queries=len(qrels) - len(queries) - len(strangers),
        unknown_documents=len(unknown),
        unknown_queries=len(strangers),
    )
    total = sum(map(len, qrels.values()))
    if not corpus or len(unknown) == total:
        have = f"corpus.jsonl has ids such as '{next(iter(documents))}'"
        raise MmclError(f"{judged}: none of its {total:,} judgements names a document with text; {have}")
    if not queries:
        have = f"queries.jsonl has ids such as '{next(iter(all_queries))}'"
        raise MmclError(f"{judged}: none of its {len(qrels):,} queries has a text; {have}")
    _say(beir, total, unknown, strangers)
    return beir


def _say(beir: Beir, judgements: int, unknown: list[str], strangers: list[str]) -> None:
    if beir.empty_documents:
        log.warning("%s: %d documents without text left out", beir.name, beir.empty_documents)
    if beir.empty_queries:
        log.warning("%s: %d judged queries without text left out", beir.name, beir.empty_queries)
    if unknown:
        log.warning(
            "%s: %d of %d judgements name documents that corpus.jsonl lacks, such as '%s': counted as never found",
            *(beir.name, len(unknown), judgements, unknown[0]),
        )
    if beir.coincidences:
        log.warning(
            "%s: %d queries have the id of a document with another text; BEIR's rule is by id alone and leaves that "
            "document out for them: self_matches 'keep' ranks it, where such ids are equal by chance",
            *(beir.name, beir.coincidences),
        )
    if strangers:
        log.warning(
            "%s: %d of %d judged queries are not in queries.jsonl, such as '%s': left out",
            *(beir.name, len(strangers), len(beir.qrels), strangers[0]),
        )


def _split_file(folder: Path, split: str | None) -> Path:
    found = [file for file in sorted((folder / "qrels").glob("*")) if _split_of(file) and file.is_file()]
    files = {_split_of(file): file for file in found}
    if not files:
        raise MmclError(f"{folder / 'qrels'}: no judgements there; a BEIR folder has qrels/SPLIT.tsv, such as test.tsv")
    for file in found:
        if files[_split_of(file)] != file:
            raise MmclError(f"{file}: {files[_split_of(file)].name} is of the same split; keep one of them")
    if split is None and len(files) == 1:
        return next(iter(files.values()))
    if split is None:
        raise MmclError(f"{folder}: it has the splits {', '.join(files)}; name one as split")
    if split not in files:
        raise MmclError(f"{folder}: no split '{split}'; it has {', '.join(files)}")
    return files[split]


def _packed(file: Path) -> Path:
    """The file, or where that is missing the compressed one."""
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.is_file() and not file.is_file() else file


def _split_of(file: Path) -> str:
    """What a file of judgements is named, without ``.tsv`` and ``.gz``; empty for other files."""
    name = file.name[:-3] if file.name.lower().endswith(".gz") else file.name
    known = not is_junk(name) and name.lower().endswith(_JUDGEMENTS)
    return name.rpartition(".")[0] if known else ""


def _texts(file: Path) -> dict[str, str]:
    """Id to title and text, as BEIR joins them."""
    texts: dict[str, str] = {}
    for number, line in read_lines(file, _LAYOUT):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise MmclError(f"{file}: line {number} is not JSON ({error})") from error
        except RecursionError:
            raise MmclError(f"{file}: line {number} is nested too deeply") from None
        key = item.get("_id") if isinstance(item, dict) else None
        if not isinstance(key, str | int):
            raise MmclError(f"{file}: line {number} has no '_id'; it should be an object with _id and text")
        if str(key) in texts:
            raise MmclError(f"{file}: line {number}: the id '{key}' stands twice; ids must be unique")
        texts[str(key)] = " ".join(filter(None, (_text(item, name, file, number) for name in ("title", "text"))))
    if not texts:
        raise MmclError(f"{file}: there are no rows")
    return texts


def _text(item: dict[str, Any], name: str, file: Path, number: int) -> str:
    value = item.get(name)
    if not isinstance(value, str | None):
        raise MmclError(f"{file}: line {number}: '{name}' is a {type(value).__name__}, not text")
    return (value or "").strip()
