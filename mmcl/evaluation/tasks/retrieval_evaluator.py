"""Evaluators of retrieval: between the two sides of rows, and by graded judgements."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from mmcl.config import schema
from mmcl.config.evaluation import EvaluationSourceConfig
from mmcl.data.batches.columns import Column
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.table import Table
from mmcl.data.batches.views import View
from mmcl.data.sources.beir import Beir, is_beir, open_beir
from mmcl.encoding.encoder import Encoder
from mmcl.encoding.shares import embed
from mmcl.evaluation.evaluator import Evaluator, Setup
from mmcl.evaluation.left_out import SelfMatches
from mmcl.evaluation.live_texts import LiveTexts
from mmcl.evaluation.measured import SourceResults
from mmcl.evaluation.metrics.display import RANKING
from mmcl.evaluation.tasks.diagnostics import diagnose
from mmcl.evaluation.tasks.retrieval import retrieval_pairs
from mmcl.evaluation.tasks.retrieval_judged import judge_retrieval
from mmcl.evaluation.tasks.text_retrieval import beir_retrieval
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.device import resolve_precision
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
_AT_K = ("hit", "recall", "precision", "ndcg", "map")
_WAYS = ("image_to_text", "text_to_image", "anchor_to_positive", "positive_to_anchor", "query_to_document")
_SEARCH = "query_to_document"


class RetrievalSourceConfig(EvaluationSourceConfig):
    """Rows whose partners are to be found, both ways; or a folder in BEIR's layout, by its judgements."""

    task: Literal["retrieval"] = "retrieval"
    self_matches: SelfMatches | None = None
    """Of texts by texts: `drop` leaves a document that is the query itself out of that query's ranking, and `keep`
    ranks it like any other; if absent, `drop` for a folder in BEIR's layout, as BEIR does, else `keep`."""


class RetrievalEvaluator(Evaluator):
    """Retrieval between images and texts or anchors and positives, both ways, or by the judgements of a BEIR folder."""

    Config = RetrievalSourceConfig
    headlines = ("hit@1", "ndcg@10")
    summary = ("hit", "ndcg", "mrr", "median_rank")
    lower_is_better = RANKING.lower_is_better
    display = RANKING

    @classmethod
    def open(cls, settings: RetrievalSourceConfig, setup: Setup) -> RetrievalEvaluator:
        """Of a folder in BEIR's layout, of images and texts, or of anchors and positives."""
        encoder, config, where = setup.encoder, setup.config, f"evaluation.sources.{setup.name}"
        if is_beir(settings.source):
            if "text" not in encoder.modalities:
                raise MmclError(f"{where}: BEIR's tasks are of texts, which the model does not embed")
            prompts = (config.data.prompts.get("anchor"), config.data.prompts.get("positive"))
            _require_best(setup.name, [_SEARCH], config)
            beir = open_beir(settings.source, settings.split)
            return BeirEvaluator(beir, config.evaluation.ks, prompts, settings.self_matches or "drop")
        named = tuple(config.model.towers)
        sides = ("image", "text") if "image" in encoder.modalities else ("anchor", "positive")
        sides = (named[0], named[1]) if len(named) == 2 else sides
        if "image" in sides and settings.self_matches is not None:
            raise MmclError(
                f"{where}.self_matches: images and texts are searched, of which none is the other; leave it out"
            )
        _require_best(setup.name, [f"{sides[0]}_to_{sides[1]}", f"{sides[1]}_to_{sides[0]}"], config)
        towers = {side: encoder.resolve(side if side in encoder.names else _modality(side)) for side in sides}
        views = {side: View(side, tower) for side, tower in towers.items()}
        reading = Reading({side: encoder.modality(tower) for side, tower in towers.items()}, encoder, views=views)
        device, show_progress = setup.device, setup.show_progress
        table = Table(
            [settings], reading, config, setup.scratch, device=device, show_progress=show_progress, where=where
        )
        table.require_rows()
        return PairsEvaluator(table, sides, config.evaluation.ks, self_matches=settings.self_matches or "keep")

    @classmethod
    def judge(cls, settings: RetrievalSourceConfig, encoder: Encoder, config: schema.Config) -> SourceResults:
        return judge_retrieval(settings, encoder, config, settings.self_matches)

    @classmethod
    def metrics(cls, settings: RetrievalSourceConfig, ks: Sequence[int]) -> list[str]:
        return [f"{way}/{name}" for way in _WAYS for name in _names(ks)]

    @classmethod
    def may_measure(cls, key: str, settings: RetrievalSourceConfig, ks: Sequence[int]) -> bool:
        """Between towers of other names as well, which the source is found to have or not when it is opened."""
        way, _, name = key.rpartition("/")
        return "_to_" in way and name in _names(ks)


class PairsEvaluator(RetrievalEvaluator):
    """Retrieval between the two sides of rows, both ways, on the pixels, tokens and features that training caches.

    A row may have several items of the second side (captions), and of the first has one. Equal items are right answers
    for each other's partners.
    """

    def __init__(
        self,
        table: Table,
        sides: tuple[str, str],
        ks: Sequence[int],
        bootstrap: int = 0,
        self_matches: SelfMatches = "keep",
    ) -> None:
        self.table, self.sides, self.ks, self.bootstrap = table, sides, ks, bootstrap
        self.self_matches = self_matches
        self.source = table.name

    def evaluate(self, encoder: Towers, *, warn: bool = True) -> dict[str, float]:
        """``image_to_text/hit@1`` and so on, fractions in [0, 1]; and what :func:`mmcl.evaluation.diagnose` finds of
        the space, as ``space/alignment`` and so on. A space that has collapsed is warned of."""
        one, other = (self.table.columns[side] for side in self.sides)
        items, owner = one.items(self.table.positions)
        items = items[np.unique(owner, return_index=True)[1]]
        others, owner = other.items(self.table.positions)
        first = _embed(encoder, self.sides[0], one, items)
        second = _embed(encoder, self.sides[1], other, others)
        if distributed.rank() != 0:
            return {}
        scores = retrieval_pairs(
            first,
            second,
            image_of_text=owner,
            names=self.sides,
            ids=(one.hashes[items], other.hashes[others]),
            ks=self.ks,
            self_matches=self.self_matches,
            bootstrap=self.bootstrap,
        )
        metrics = {f"{way}/{name}": value for way, judged in scores.items() for name, value in judged.metrics.items()}
        if min(len(first), len(second)) < 2:  # a single vector has no geometry
            return metrics
        space = diagnose(first, second, owner, names=self.sides)
        for reason in space.collapsed if warn else ():
            log.warning("%s: %s", self.source, reason)
        return metrics | {f"space/{name}": value for name, value in space.metrics().items()}

    def warn_of_shared(self, name: str, training: Table) -> None:
        """Log a warning if rows of the source ``name`` stand among the usable ones of ``training``: with an equal
        image, or without images with both texts as a pair."""
        if not set(self.sides) <= training.columns.keys():
            return
        keys, owner = self._keys(self.table, training)
        shared = len(np.unique(owner[np.isin(keys, self._keys(training, training)[0])]))
        if shared:
            log.warning(
                "evaluation.sources.%s: %d of %d rows of %s stand in the training rows, too: its numbers are better "
                "than on new rows; mmcl data check --against lists them",
                *(name, shared, len(self.table.positions), self.source),
            )

    def _keys(self, table: Table, training: Table) -> tuple[np.ndarray, np.ndarray]:
        """What the rows of a table are, equal to those of ``training`` where the rows are; and the rows."""
        one, other = self.sides
        items, owner = table.columns[one].items(table.positions)
        first = table.hashes(one, training)[items[np.unique(owner, return_index=True)[1]]]
        if one == "image":
            return first, np.arange(len(first))
        others, owner = table.columns[other].items(table.positions)
        # Two 64-bit hashes in one: an odd factor keeps the first one's bits apart, and int64 products wrap.
        return first[owner] * -7046029254386353131 + table.hashes(other, training)[others], owner

    def problems(self) -> list[dict[str, str]]:
        """The rows without one of the sides."""
        return self.table.problems()


class BeirEvaluator(RetrievalEvaluator):
    """Search by graded judgements; see :func:`mmcl.evaluation.beir_retrieval`.

    Args:
        beir: documents, queries and judgements.
        ks: cut-offs.
        prompts: names of those of queries and of documents; the model's own where None.
        self_matches: what becomes of the document that has a query's own id.
    """

    def __init__(
        self,
        beir: Beir,
        ks: Sequence[int],
        prompts: tuple[str | None, str | None] = (None, None),
        self_matches: SelfMatches = "drop",
    ) -> None:
        self.beir, self.ks, self.prompts, self.self_matches = beir, ks, prompts, self_matches
        self.source = beir.name
        own = beir.queries_in_corpus
        if own and distributed.rank() == 0:
            rule = "left out of its own ranking, as in BEIR" if self_matches == "drop" else "ranked as its own answer"
            log.info(
                "%s: %d of %d queries stand in the corpus under their own id: each is %s",
                *(self.source, own, len(beir.queries), rule),
            )

    def evaluate(self, encoder: Towers, *, warn: bool = True) -> dict[str, float]:
        """``query_to_document/ndcg@10`` and so on, fractions in [0, 1]."""
        query, document = self.prompts
        live = LiveTexts(encoder)
        scores = beir_retrieval(
            live,
            self.beir,
            self.ks,
            query_prompt=query,
            document_prompt=document,
            self_matches=self.self_matches,
            bootstrap=0,
        )
        if distributed.rank() != 0:
            return {}
        return {f"{_SEARCH}/{name}": value for name, value in scores.metrics.items()}


def _require_best(name: str, ways: Sequence[str], config: schema.Config) -> None:
    """Raise ``MmclError`` if the metric to choose by is of the source ``name``, but of a way that is not searched."""
    source, *measured = (config.evaluation.best or "").rsplit("/", 2)
    if source == name and measured[0] not in ways:
        raise MmclError(
            f"evaluation.best: '{config.evaluation.best}' will not be measured: {name} is searched {' and '.join(ways)}"
        )


def _names(ks: Sequence[int]) -> list[str]:
    return [*(f"{name}@{k}" for name in _AT_K for k in ks), "map", "mrr", "median_rank"]


def _modality(side: str) -> str:
    return "image" if side == "image" else "text"


def _embed(encoder: Towers, side: str, column: Column, items: np.ndarray) -> np.ndarray:
    """(len(items), D) unit vectors."""
    tower = side if side in encoder.names else _modality(side)

    def inputs(places: np.ndarray) -> dict[str, Tensor]:
        return column.inputs(items[places])

    return embed(encoder, tower, inputs, len(items), precision=resolve_precision("auto", encoder.device))
