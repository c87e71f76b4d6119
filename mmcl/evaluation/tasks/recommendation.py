"""How well what users will choose is found among all that they have not chosen yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mmcl.data.cache.tokens import texts_of
from mmcl.data.processors.image import ImageProcessor
from mmcl.data.processors.table import TableProcessor
from mmcl.data.rows import Rows
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.inputs import Identified
from mmcl.evaluation.tasks.retrieval import Scores, retrieval
from mmcl.losses.logits.similarity import Similarity
from mmcl.models.embedder import Embedder
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
WAY = "user_to_item"
TOWERS = ("user", "item")
"""As ``two_tower`` names them."""


def recommendation(
    users: Identified,
    items: Identified,
    chosen: Mapping[Any, Iterable[Hashable]],
    seen: Mapping[Any, Iterable[Hashable]],
    ks: Iterable[int] = (10, 20),
    *,
    similarity: Similarity = "cosine",
    bootstrap: int = 1000,
) -> Scores:
    """Rank for every user all items but those seen, and score the ranks of those chosen.

    The numbers are those of :func:`~mmcl.evaluation.retrieval`, trec_eval's, with intervals over users; a tie never
    helps. Recall is of all that a user chose, also where that is more than k.

    Args:
        users: {user: (D,) vector}, or a pair (ids, (U, D) array).
        items: {item: (D,) vector}, or a pair (ids, (I, D) array).
        chosen: user to the items that are to be found; of them the seen ones are not.
        seen: user to the items that are not ranked, such as those of the training rows.
        ks: cut-offs of the metrics at k.
        similarity: what items are ranked by.
        bootstrap: resamples for the intervals; 0 for none.

    Raises:
        MmclError: as :func:`~mmcl.evaluation.retrieval`; all that the users chose they have seen.

    >>> users, items = {"u": [1.0, 0.0]}, {"a": [1.0, 0.0], "b": [1.0, 0.1], "c": [0.0, 1.0]}
    >>> recommendation(users, items, {"u": ["b"]}, {"u": ["a"]}, ks=[1], bootstrap=0).metrics["recall@1"]
    1.0
    """
    known, wanted = ({user: set(of) for user, of in given.items()} for given in (seen, chosen))
    qrels = {user: dict.fromkeys(of - known.get(user, set()), 1) for user, of in wanted.items()}
    if any(wanted.values()) and not any(qrels.values()):
        raise MmclError(
            "recommendation: users chose nothing but what they had seen, which is not ranked; name the rows before "
            "those to be found (--seen, --seen-split)"
        )
    scores = retrieval(users, items, qrels, ks, similarity=similarity, seen=known, bootstrap=bootstrap)
    return replace(scores, queries_in_corpus=0)  # a user is no item, though both may be called 7


@dataclass(frozen=True)
class Choices:
    """Who chose what, in rows to judge by and in rows before them.

    Attributes:
        test: the rows to judge by.
        before: the rows whose items their users have seen.
        users: each user of ``test`` to the first row there.
        items: each item to the table, 0 of ``test`` and from 1 on of ``before``, and the row that it is read from: the
            first, of ``before`` if it is there.
        chosen: user to the items of ``test``.
        seen: user to the items of ``before``.
    """

    test: Rows
    before: Sequence[Rows]
    users: dict[str, int]
    items: dict[str, tuple[int, int]]
    chosen: dict[str, set[str]]
    seen: dict[str, set[str]]

    @classmethod
    def of(cls, test: Rows, before: Sequence[Rows], user: str, item: str) -> Choices:
        """Of rows with the ids of users and items in these columns. What was chosen in both tables is counted in a
        warning: it is not ranked.

        Raises:
            MmclError: there is no such column, or a row has no id.
        """
        items: dict[str, tuple[int, int]] = {}
        by_table: list[dict[str, set[str]]] = []
        users: dict[str, int] = {}
        for number, rows in [*enumerate(before, start=1), (0, test)]:
            rows.require([user, item])
            choices: dict[str, set[str]] = {}
            for row, (who, what) in enumerate(zip(rows.ids(user), rows.ids(item), strict=True)):
                choices.setdefault(who, set()).add(what)
                items.setdefault(what, (number, row))
                if number == 0:
                    users.setdefault(who, row)
            by_table.append(choices)
        *earlier, chosen = by_table
        seen = {who: set().union(*(of.get(who, set()) for of in earlier)) for who in chosen}
        if (again := sum(len(of & seen[who]) for who, of in chosen.items())) and distributed.rank() == 0:
            log.warning(
                "%s: %d of %d choices of users stand in the rows before them, too: they are not ranked",
                *(test.name, again, sum(map(len, chosen.values()))),
            )
        return cls(test, before, users, items, chosen, seen)

    def inputs(self, towers: Towers, named: Callable[[str], str]) -> dict[str, list[Any]]:
        """Of users and of items, in their order, what their towers take, by the towers' names.

        Args:
            towers: ``user`` and ``item``.
            named: from a column of a tower to what the rows call it.
        """
        users, items = (partial(_read, tower, towers.embedder(tower), named) for tower in TOWERS)
        of_items: list[Any] = [None] * len(self.items)
        for number, rows in enumerate([self.test, *self.before]):
            places = [place for place, (table, _) in enumerate(self.items.values()) if table == number]
            chosen = [row for table, row in self.items.values() if table == number]
            for place, made in zip(places, items(rows, chosen), strict=True):
                of_items[place] = made
        return dict(zip(TOWERS, (users(self.test, list(self.users.values())), of_items), strict=True))

    def score(self, users: np.ndarray, items: np.ndarray, ks: Iterable[int], bootstrap: int) -> Scores:
        """By the vectors of users and items, in their order."""
        return recommendation(
            (list(self.users), users), (list(self.items), items), self.chosen, self.seen, ks, bootstrap=bootstrap
        )


def _read(tower: str, embedder: Embedder, named: Callable[[str], str], rows: Rows, places: Sequence[int]) -> list[Any]:
    """The inputs of a tower from rows, as ``encode`` takes them; a tower of one column is called as its column is."""
    processor, part = embedder.processor, rows.select(places)
    if isinstance(processor, TableProcessor):
        return part.records({name: named(name) for name in processor.columns}, processor.images)
    if isinstance(processor, ImageProcessor):
        return list(part.images(named(tower), range(len(part))))
    return [next(iter(texts_of(cell)), "") for cell in part.texts(named(tower))]


def require_two_towers(towers: Towers) -> None:
    """Raise ``MmclError`` unless there are a tower of users and one of items."""
    if not set(TOWERS) <= set(towers.names):
        raise MmclError(
            f"model '{towers.name}' has no towers user and item, as two_tower trains them: {', '.join(towers.names)}"
        )


def recommendation_of_rows(
    encoder: Encoder,
    test: Rows,
    before: Sequence[Rows],
    *,
    user: str = "user_id",
    item: str = "item_id",
    named: Callable[[str], str] = lambda name: name,
    ks: Iterable[int] = (10, 20),
    bootstrap: int = 1000,
) -> Scores:
    """Recommendation to the users of ``test``, of all items of both tables that they have not seen in ``before``.

    Args:
        encoder: with a tower of users and one of items.
        test: rows of what users chose, with the columns that the towers read.
        before: what they had chosen earlier, with the columns of the items.
        user: column of the ids of users.
        item: column of the ids of items.
        named: from a column of a tower to what the rows call it.
        ks: cut-offs.
        bootstrap: resamples for the intervals; 0 for none.

    Raises:
        MmclError: there is no such column or tower.
    """
    require_two_towers(encoder.towers)
    choices = Choices.of(test, before, user, item)
    inputs = choices.inputs(encoder.towers, named)
    users, items = (encoder.encode(inputs[tower], tower) for tower in TOWERS)
    scores = choices.score(users, items, ks, bootstrap)
    return replace(scores, data="-".join([test.fingerprint, *(rows.fingerprint for rows in before)]))
