"""Searching an index with texts and images, by the model that its vectors are from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmcl.data.images import image_suffixes
from mmcl.data.processors.table import TableProcessor
from mmcl.data.rows import Rows
from mmcl.encoding import Encoder
from mmcl.encoding.load import load
from mmcl.retrieval.faiss_index import Index
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import existing_file

log = logging.getLogger("mmcl")


class Search:
    """An index with the encoder of its queries.

    Args:
        folder: of the index.
        model: the encoder's name or folder; the one that the index names if absent.
        tower: of the model, which embeds the queries, where it has several of a kind. The index may be of another's
            vectors: of answers, which are searched with questions.

    Raises:
        MmclError: there is no index, no model or no such tower, the index names no model, or its vectors are another
            model's: of other weights, another prompt, or another dimension.
    """

    def __init__(self, folder: str | Path, model: str | None = None, tower: str | None = None) -> None:
        self.index = Index.load(folder)
        name = model or self.index.model
        if not name:
            raise MmclError(f"{folder}: it does not say which model made its vectors; name it with --model")
        if model is None and Path(name).is_absolute() and not Path(name).exists():
            raise MmclError(f"{folder}: its model is no longer at {name}; say with --model where it is now")
        encoder = load(name)
        self._check(encoder, folder, name)
        self.encoder: Encoder = encoder if tower is None else encoder.only(tower)

    def _check(self, encoder: Encoder, folder: str | Path, name: str) -> None:
        index = self.index
        if index.encoder is None:
            if index.dim != encoder.dim:
                raise MmclError(f"model '{name}' gives {encoder.dim} dimensions, the index has {index.dim}")
            log.warning(
                "%s: does not say by which weights its vectors were made, so that it is not known whether '%s' still "
                "has these; encode and index anew to have it checked",
                folder,
                name,
            )
            return
        # The vectors may be by all towers, or by one of them.
        parts = (encoder, *(encoder.select(tower) for tower in encoder.towers.names if len(encoder.towers.names) > 1))
        found = (part.fingerprint() for part in parts)
        now = next((each for each in found if each["weights"] == index.encoder["weights"]), None)
        if now is None:
            raise MmclError(
                f"{folder}: its vectors were made by other weights or settings than those of '{name}'; name the model "
                "that made them with --model, or encode and index anew with this one"
            )
        if now["prompt"] != index.encoder["prompt"]:
            raise MmclError(
                f"{folder}: '{name}' now puts {now['prompt']!r} before a text, and put "
                f"{index.encoder['prompt']!r} when the vectors were made; give it that prompt, or encode and index anew"
            )

    def answers(self, queries: Sequence[str], k: int, *, as_text: bool = False) -> dict[str, list[dict[str, Any]]]:
        """The k best for each query: ``rank``, ``score``, ``id`` and ``label``.

        Args:
            queries: texts, or paths of image files that exist, where the model embeds images.
            k: how many.
            as_text: take all for text.

        Raises:
            MmclError: a query is empty.
        """
        if not queries:
            return {}
        if not all(map(str.strip, queries)):
            raise MmclError("a query is empty; name words, or an image file")
        inputs = [query if as_text else self._meant(query) for query in queries]
        truncate_dim = self.index.dim if self.index.dim != self.encoder.dim else None
        modality = "text" if as_text else None
        vectors = self.encoder.encode(inputs, modality, truncate_dim=truncate_dim, show_progress=False)
        ids, scores = self.index.search(vectors, k)
        found = {}
        for query, names, how_near in zip(queries, ids.tolist(), scores.tolist(), strict=True):
            found[query] = self._hits(names, how_near)
        return found

    def answers_to_rows(
        self, rows: Rows, wanted: Sequence[str], k: int, *, ids: str | None = None, without: str | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """As :meth:`answers`, for rows of a table, by the tower of tables that embeds them.

        Args:
            rows: with the columns that the tower reads.
            wanted: the ids of those to search by.
            k: how many.
            ids: their column; ``id`` or ``_id``, else the numbers of the rows, if absent.
            without: a column that lists the ids of what is left out of a row's own results, such as its history.

        Raises:
            MmclError: there is no such column, no row of such an id, or the model embeds no rows.
        """
        processor = self.encoder.embedder("table").processor
        if not isinstance(processor, TableProcessor):
            raise MmclError(f"model '{self.encoder.name}' embeds no rows of tables; leave out --rows")
        rows.require([*processor.columns, *([without] if without else [])])
        places = {name: row for row, name in reversed(list(enumerate(rows.ids(ids))))}
        for name in wanted:
            if name not in places:
                raise MmclError(f"{rows.name}: no row has the id '{name}'; it has such as '{next(iter(places), '')}'")
        part = rows.select([places[name] for name in wanted])
        left_out = [set(map(str, of or ())) for of in part.column(without)] if without else [set[str]()] * len(wanted)
        records = part.records({name: name for name in processor.columns}, processor.images)
        vectors = self.encoder.encode(records, "table", show_progress=False)
        deep = min(k + max(map(len, left_out), default=0), len(self.index))
        found, scores = self.index.search(vectors, deep)
        answers: dict[str, list[dict[str, Any]]] = {}
        for name, names, near, known in zip(wanted, found.tolist(), scores.tolist(), left_out, strict=True):
            kept = [(other, score) for other, score in zip(names, near, strict=True) if str(other) not in known][:k]
            answers[name] = self._hits([other for other, _ in kept], [score for _, score in kept])
        return answers

    def _hits(self, names: list[Any], scores: list[float]) -> list[dict[str, Any]]:
        """Results of a query, best first."""
        hits = zip(names, scores, self.index.labels_of(names), strict=True)
        return [
            {"rank": rank, "score": score, "id": name, "label": label}
            for rank, (name, score, label) in enumerate(hits, start=1)
        ]

    def _meant(self, query: str) -> str | Path:
        """The path of an image file, or text; what looks like the one and is taken for the other is said."""
        path = existing_file(query)
        named = Path(query).suffix.lower() in image_suffixes() and " " not in query
        if path is not None and "image" in self.encoder.modalities and (named or _is_image(path)):
            return path
        if path is not None:
            log.warning("%s: there is such a file, but it is searched as text", query)
        elif named:
            log.warning("%s: there is no such file, so it is searched as text", query)
        return query


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # whatever the readers of some fifty formats meet
        return False
