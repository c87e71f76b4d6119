"""Evaluators of a model in training: retrieval between pairs, correlation with scores, graded search."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmcl.config.data import JudgedSourceConfig
from mmcl.config.schema import Config
from mmcl.data.batches.columns import Column
from mmcl.data.batches.inputs import text_inputs
from mmcl.data.batches.table import Table
from mmcl.data.batches.text_reader import TextReader
from mmcl.data.batches.towers import Reading
from mmcl.data.sources import open_source
from mmcl.data.sources.beir import Beir, is_beir, open_beir
from mmcl.data.sources.tar.shards import is_shards
from mmcl.encoding.encoder import Encoder
from mmcl.evaluation import beir_retrieval, diagnose, open_sts, retrieval_pairs, sts
from mmcl.evaluation.tasks.retrieval import SelfMatches
from mmcl.evaluation.tasks.sentence_pairs import SentencePairs
from mmcl.models.text.tower import TextTower
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training.shares import embed

log = logging.getLogger("mmcl")
SEARCH = "query_to_document"
TEXTS_AT_ONCE = 16_384  # tokenized, of a search's documents


class Evaluator(Protocol):
    """Computes metrics of a model on one source of data, again and again while it learns."""

    @property
    def source(self) -> str:
        """What messages call its rows."""

    def evaluate(self, encoder: Encoder, *, warn: bool = True) -> dict[str, float]:
        """The metrics of a model as it is; empty in all processes but the first. All processes call this together.

        What looks wrong with the model is warned of, unless ``warn`` is False, as for one that is not trained yet."""

    def problems(self) -> list[dict[str, str]]:
        """The rows that cannot be used: id, role and reason of each."""


def open_evaluator(
    name: str,
    settings: JudgedSourceConfig,
    encoder: Encoder,
    config: Config,
    scratch: Path | None,
    *,
    device: torch.device,
    show_progress: bool | None = None,
) -> Evaluator:
    """What ``evaluation.sources.NAME`` describes.

    Args:
        name: the NAME.
        settings: of the source.
        encoder: to judge; its towers say what their inputs are.
        config: of the run.
        scratch: folder for the features of frozen towers; None: they are not computed ahead.
        device: where frozen towers run.
        show_progress: a bar on stderr; for a terminal if absent.

    Raises:
        MmclError: the source cannot be read, has no usable row, or does not fit the task or the model.
    """
    if is_shards(settings.source):
        raise MmclError(f"evaluation.sources.{name}: {settings.source}: judging needs a table or folder, not a stream")
    if settings.task == "sts":
        if "text" not in encoder.modalities:
            raise MmclError(f"evaluation.sources.{name}: sts compares texts, which the model does not embed")
        pairs = open_pairs(settings)
        named = config.data.prompts
        # Neither sentence searches for the other, so both are read as what training compares: `text`, or an `anchor`.
        return StsEvaluator(pairs, named.get("text", named.get("anchor")))
    if is_beir(settings.source):
        if "text" not in encoder.modalities:
            raise MmclError(f"evaluation.sources.{name}: BEIR's tasks are of texts, which the model does not embed")
        prompts = (config.data.prompts.get("anchor"), config.data.prompts.get("positive"))
        _require_best(name, [SEARCH], config)
        beir = open_beir(settings.source, settings.split)
        return BeirEvaluator(beir, config.evaluation.ks, prompts, settings.self_matches or "drop")
    sides = ("image", "text") if "image" in encoder.modalities else ("anchor", "positive")
    if "image" in sides and settings.self_matches is not None:
        raise MmclError(
            f"evaluation.sources.{name}.self_matches: images and texts are searched, of which none is the other; leave "
            "it out"
        )
    _require_best(name, [f"{sides[0]}_to_{sides[1]}", f"{sides[1]}_to_{sides[0]}"], config)
    roles = {side: "image" if side == "image" else "text" for side in sides}
    table = Table([settings], Reading(roles, encoder), config, scratch, device=device, show_progress=show_progress)
    table.require_rows()
    return PairsEvaluator(table, sides, config.evaluation.ks, self_matches=settings.self_matches or "keep")


def open_pairs(settings: JudgedSourceConfig) -> SentencePairs:
    """The labelled pairs that a source with the task ``sts`` describes."""
    tasks, columns = settings.tasks, settings.columns
    if settings.separator is None:
        return open_sts(settings.source, split=settings.split, tasks=tasks, columns=columns)
    rows = open_source(settings.source, split=settings.split, separator=settings.separator)
    return open_sts(rows, split=None, tasks=tasks, columns=columns)


def _require_best(name: str, ways: Sequence[str], config: Config) -> None:
    """Raise ``MmclError`` if the metric to choose by is of the source ``name``, but of a way that is not searched."""
    source, *measured = (config.evaluation.best or "").rsplit("/", 2)
    if source == name and measured[0] not in ways:
        raise MmclError(
            f"evaluation.best: '{config.evaluation.best}' will not be measured: {name} is searched {' and '.join(ways)}"
        )


class PairsEvaluator:
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

    def evaluate(self, encoder: Encoder, *, warn: bool = True) -> dict[str, float]:
        """``image_to_text/hit@1`` and so on, fractions in [0, 1]; and what :func:`mmcl.evaluation.diagnose` tells of
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
            image_ids=one.hashes[items],
            text_ids=other.hashes[others],
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
        keys, owner = self._keys(self.table)
        shared = len(np.unique(owner[np.isin(keys, self._keys(training)[0])]))
        if shared:
            log.warning(
                "evaluation.sources.%s: %d of %d rows of %s stand in the training rows, too: its numbers are better "
                "than on new rows; mmcl data check --against lists them",
                *(name, shared, len(self.table.positions), self.source),
            )

    def _keys(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """What the rows of a table are, and the rows."""
        one, other = (table.columns[side] for side in self.sides)
        items, owner = one.items(table.positions)
        first = one.hashes[items[np.unique(owner, return_index=True)[1]]]
        if self.sides[0] == "image":
            return first, np.arange(len(first))
        others, owner = other.items(table.positions)
        # Two 64-bit hashes in one: an odd factor keeps the first one's bits apart, and int64 products wrap.
        return first[owner] * -7046029254386353131 + other.hashes[others], owner

    def problems(self) -> list[dict[str, str]]:
        """The rows without one of the sides."""
        return self.table.problems()


class StsEvaluator:
    """Correlation with people's scores; see :func:`mmcl.evaluation.tasks.sts`."""

    def __init__(self, pairs: SentencePairs, prompt: str | None = None) -> None:
        self.pairs, self.prompt = pairs, prompt
        self.source = pairs.name

    def evaluate(self, encoder: Encoder, *, warn: bool = True) -> dict[str, float]:
        """``spearman`` and ``pearson``, and those of each task as ``STS12/spearman`` and so on where there are more.

        What is undefined, since all similarities or all scores of a task are equal, is left out and warned of."""
        scores = sts(LiveTexts(encoder), self.pairs, prompt=self.prompt, bootstrap=0)
        if distributed.rank() != 0:
            return {}
        several = len(self.pairs.tasks) > 1
        metrics = {name: float(value) for name, value in scores.metrics.items() if several or "/" not in name}
        undefined = [name for name, value in metrics.items() if math.isnan(value)]
        if undefined and warn:
            log.warning("%s: all similarities or all scores are equal: no %s", self.source, ", ".join(undefined))
        return {name: value for name, value in metrics.items() if name not in undefined}

    def problems(self) -> list[dict[str, str]]:
        """None: what is left out has been counted and said on reading."""
        return []


class BeirEvaluator:
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

    def evaluate(self, encoder: Encoder, *, warn: bool = True) -> dict[str, float]:
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
        return {f"{SEARCH}/{name}": value for name, value in scores.metrics.items()}

    def problems(self) -> list[dict[str, str]]:
        """None: what is left out has been counted and said on reading."""
        return []


class LiveTexts:
    """``encode`` of the texts of a model in training, by its weights as they are, each process its share.

    All processes call it together, with the same texts, and all get all vectors.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        tower = encoder.embedder("text").tower
        assert isinstance(tower, TextTower)
        self._tower = tower

    @property
    def prompts(self) -> Mapping[str, str]:
        """The model's."""
        return self._tower.prompts

    def text_identities(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """(N,) int64, equal for texts that the tower cannot tell apart."""
        return self._tower.identities(texts, prompt)

    def encode(self, inputs: Sequence[str], *, prompt: str | None = None, normalize: bool = True) -> np.ndarray:
        """(N, D) float32, in the order of the texts."""
        reader = TextReader(self._tower, prompt)
        chunks = [inputs[start : start + TEXTS_AT_ONCE] for start in range(0, len(inputs), TEXTS_AT_ONCE)]
        vectors = [self._chunk(texts, reader, normalize) for texts in chunks]
        return np.concatenate([np.empty((0, self._encoder.width), np.float32), *vectors])

    def _chunk(self, texts: Sequence[str], reader: TextReader, normalize: bool) -> np.ndarray:
        tokens, _ = reader.tokenize(texts)
        order = np.argsort([-len(ids) for ids in tokens], kind="stable")  # texts of a length together: little padding

        def inputs(places: np.ndarray) -> dict[str, Tensor]:
            return text_inputs(self._tower, [tokens[place] for place in order[places]], reader.skipped)

        vectors = np.empty((len(texts), self._encoder.width), dtype=np.float32)
        vectors[order] = embed(self._encoder, "text", inputs, len(texts), normalize, self._encoder.compute)
        return vectors


def _embed(encoder: Encoder, side: str, column: Column, items: np.ndarray) -> np.ndarray:
    """(len(items), D) unit vectors."""
    modality = "image" if side == "image" else "text"

    def inputs(places: np.ndarray) -> dict[str, Tensor]:
        return column.inputs(items[places])

    return embed(encoder, modality, inputs, len(items), precision=encoder.compute)
