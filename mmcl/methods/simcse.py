"""SimCSE: one text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Unpack, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.config.model import HeadConfig
from mmcl.config.section import Positive
from mmcl.data.batches.batch import MINED, Batch
from mmcl.data.identity import NOTHING, mix
from mmcl.losses import Blockwise, Guide, Negatives, batch_accuracy, cosent, cosine_mse, debiased_info_nce, info_nce
from mmcl.losses.unit import unit_length
from mmcl.methods.base import Loss, Setting, Views, roles_named
from mmcl.methods.paired import Paired, key_of
from mmcl.methods.parts.masked_language import MaskedLanguage, MlmConfig
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import GuideConfig, TeacherConfig
from mmcl.models.heads import Head
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, nearest

PAIR = {"anchor": "text", "positive": "text"}
NEGATIVE = re.compile(r"negative(_[1-9][0-9]*)?")


class SimcseConfig(MethodConfig):
    """One text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821).

    Unsupervised, with the role `text`: a sentence goes through the tower twice, and dropout makes the pair. Supervised,
    with the roles `anchor` and `positive`, and hard negatives. With the role `score`: labelled pairs.
    """

    name: Literal["simcse"] = "simcse"
    loss: Literal["info_nce", "cosent", "cosine_mse"] = "info_nce"
    """`info_nce`, or for pairs with a score `cosent` (the order of the scores is learned) or `cosine_mse` (the scores
    themselves)."""
    temperature: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Temperature at the start; that of the model to start from if absent, and 0.05 if there is none."""
    learn_temperature: bool = False
    """Learn the temperature; it stays at least 0.01."""
    symmetric: bool = False
    """Tell each positive's anchor from the other anchors as well."""
    hard_negative_weight: Positive = 1.0
    """The paper's α: how much a row's own hard negatives count in its denominator, beside those of other rows."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all candidates."""
    training_head: bool = False
    """A dense layer and tanh between the embeddings and the loss, in training only: the paper's MLP. The model folder
    keeps it, apart from what embeds."""
    mlm: MlmConfig | None = None
    """Predict masked tokens besides."""
    debias: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability τ⁺ that a negative is a positive in truth, which the denominator is corrected for (Chuang et al.
    2020, arXiv:2007.00224)."""
    queue: QueueConfig | None = None
    """Positives of past batches as negatives of every anchor; if symmetric, past anchors for every positive as well."""
    hardness: float = Field(default=0.0, ge=0.0)
    """Concentration β on hard negatives (Robinson et al. 2021, arXiv:2010.04592)."""
    score_range: tuple[float, float] = (0.0, 5.0)
    """Scores that mean nothing alike and all the same, for `cosine_mse`, which learns cosines from 0 to 1."""
    guide: GuideConfig | None = None
    """Leave out negatives that another model finds too close."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""
    matryoshka: MatryoshkaConfig | None = None
    """Compute the loss of the first dimensions as well."""

    @model_validator(mode="after")
    def _parts_fit(self) -> SimcseConfig:
        if self.debias or self.hardness:
            for name in ("label_smoothing", "guide"):
                if getattr(self, name):
                    raise ValueError(f"debias and hardness reweigh all negatives and do not go with {name}")
        if self.loss != "info_nce":
            for name in ("symmetric", "label_smoothing", "debias", "hardness", "queue", "guide", "teacher"):
                if getattr(self, name):
                    raise ValueError(f"{name} is of info_nce; loss '{self.loss}' has none of it")
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError(f"score_range: two ends in ascending order, not {self.score_range}")
        return self


class Simcse(Paired):
    """Each text is told from the batch by its positive: itself under another dropout, or its partner.

    - With the role ``text`` a sentence goes through the tower twice in one batch, and dropout makes the pair.
    - With ``anchor`` and ``positive`` rows are pairs, and ``negative``, ``negative_2``, … are hard negatives: wrong for
      every anchor, and with a weight for their own. So are those that are mined.
    - With ``score`` the pairs are labelled, and their cosines learn the scores or the order of these.

    A text is no negative of a row that has it as its anchor or as its positive.

    Attributes:
        training_head: maps embeddings before they are compared in training, if the config says so.
        masked_language: predicts hidden tokens besides, if the config says so.
    """

    sides: ClassVar[tuple[str, str]] = ("anchor", "positive")
    # Where anchors are questions, to pad them to the length of the answers would cost most.
    apart: ClassVar[tuple[str, ...]] = ("anchor",)
    start_temperature: ClassVar[float] = 0.05

    Config = SimcseConfig
    config: SimcseConfig

    def __init__(self, config: SimcseConfig, encoder: Towers, **setting: Unpack[Setting]) -> None:
        super().__init__(config, encoder, **setting)
        if config.loss != "info_nce" or config.debias or config.hardness:
            _refuse_ring(config, self.across)
            self.across = None
        self.unsupervised = "text" in self.inputs
        self.negatives = [role for role in self.inputs if NEGATIVE.fullmatch(role)]
        _refuse_what_does_nothing(config, hard=bool(self.negatives or self.mined))
        if config.training_head:
            kept = encoder.training_head  # of the model to start from
            self.training_head = Head(HeadConfig(kind="tanh"), encoder.width, encoder.width) if kept is None else kept
        mlm, embedder = config.mlm, encoder.embedder("text")
        self.masked_language = MaskedLanguage(embedder, mlm.probability) if mlm else None
        if config.queue is not None:
            parts: dict[str, nn.Module] = {"text": embedder}
            if self.training_head is not None:
                parts["training_head"] = self.training_head
            self.keep_past(config.queue, self.sides if config.symmetric else self.sides[1:], parts)

    @classmethod
    def inputs_of(cls, config: schema.Config) -> dict[str, str]:
        method, named = cast(SimcseConfig, config.method), roles_named(config)
        hard = sorted(filter(NEGATIVE.fullmatch, named), key=lambda role: (len(role), role))
        everything = ["text", *PAIR, *(hard or ["negative"]), "score"]
        if method.loss != "info_nce":
            inputs = PAIR | {"score": "number"}
        elif set(named) <= {"text"}:
            inputs = {"text": "text"}
        else:
            inputs = PAIR | dict.fromkeys(hard, "text")
        for role, setting in named.items():
            if role not in everything:
                raise MmclError(f"{setting}.{role}: method 'simcse' has no such role; {nearest(role, everything)}")
            if role not in inputs:
                if role == "score":
                    raise MmclError(f"{setting}.score: scores are learned by method.loss cosent or cosine_mse; set one")
                raise MmclError(
                    f"{setting}.{role}: method 'simcse' with loss '{method.loss}' and these columns reads "
                    f"{', '.join(inputs)}; leave {role} out, or change method.loss or the columns"
                )
        return inputs

    @property
    def compared(self) -> tuple[str, ...]:
        return (*super().compared, *self.negatives, MINED)

    @property
    def optional(self) -> frozenset[str]:
        """Hard negatives: a row without them has those of the batch alone."""
        return frozenset(self.negatives)

    @property
    def minable(self) -> tuple[str, str] | None:
        """Other rows' positives, for anchors."""
        return self.sides if "anchor" in self.inputs and self.config.loss == "info_nce" else None

    @property
    def redrawn(self) -> dict[str, str]:
        return {"positive": "text"} if self.unsupervised else {}

    def learned_scale(self) -> tuple[float | None, float | None]:
        return (None, None) if self.config.loss == "cosine_mse" else super().learned_scale()

    def embed(self, batch: Batch) -> Views:
        texts = batch.inputs | ({MINED: batch.extra[MINED]} if MINED in batch.extra else {})
        views = self._embed_texts(texts) | self.embed_references(batch) | {"ids": batch.ids}
        if MINED in batch.extra:
            views[f"{MINED}_ids"] = batch.extra_ids[MINED]
        if "score" in self.inputs:
            views["score"] = batch.inputs["score"]["values"]
        if self.unsupervised:
            for name in self.references:
                views[f"{name}_anchor"] = views[f"{name}_positive"] = views.pop(f"{name}_text")
        if self.masked_language is not None and self.training:
            views["mlm"] = self._predict_tokens(batch)
        return views

    def _embed_texts(self, inputs: dict[str, dict[str, Tensor]]) -> Views:
        if self.unsupervised:
            inputs = {"anchor": inputs["text"], "positive": inputs.get("positive", inputs["text"])}
            groups = [[*self.sides]]
        else:
            groups = [[*self.apart], [role for role in ("positive", *self.negatives, MINED) if role in inputs]]
        views: Views = {}
        for roles in groups:
            texts = {role: inputs[role] for role in roles}
            if self.key_embedder is None:
                views |= self.embed_together(self.encoder.embedder("text"), texts)
                continue
            queries = {role: texts[role] for role in roles if role in self._queries}
            keys = {role: texts[role] for role in roles if role != "anchor" or self.config.symmetric}
            views |= self.embed_together(self.encoder.embedder("text"), queries)
            vectors = self.embed_together(partial(self.key_embedder, "text"), keys)
            views |= {f"key_{role}" if role in queries else role: vector for role, vector in vectors.items()}
        return views

    @property
    def _queries(self) -> tuple[str, ...]:
        """The roles that are told from others; all else is keys alone, which a momentum copy embeds if there is one."""
        return self.sides if self.config.symmetric else self.sides[:1]

    def _predict_tokens(self, batch: Batch) -> Tensor:
        """(N, 2) of all texts of a row: what :class:`MaskedLanguage` gives."""
        assert self.masked_language is not None, "the caller looks"
        tower = cast(TextTower, self.encoder.embedder("text").tower)
        counts = []
        for number, (role, modality) in enumerate(self.inputs.items()):
            if modality == "text":
                tokens, seeds = batch.inputs[role], mix(batch.seeds, number)
                counts.append(self.masked_language(tower, tokens["input_ids"], tokens.get("attention_mask"), seeds))
        return torch.stack(counts).sum(dim=0)

    def loss(self, views: Views) -> Loss:
        return super().loss(self._before_the_loss(views))

    def contrast(self, views: Views) -> Tensor:
        config, (query, key) = self.config, (views[side] for side in self.sides)
        if config.loss == "cosent":
            return cosent(query, key, views["score"], self.temperature)
        if config.loss == "cosine_mse":
            return cosine_mse(query, key, self._targets(views["score"]))
        return self._both_ways(self._tell_apart, views, symmetric=config.symmetric)

    def _tell_apart(self, views: Views, query: str, key: str, *, symmetric: bool) -> Tensor:
        """Each ``query`` from the batch by its ``key``, among further negatives that are keys of its kind."""
        config, ids = self.config, self._identities(views["ids"])
        further = self._further(views, key)
        options: dict[str, Any] = {"ids": (ids[query], ids[key]), "symmetric": symmetric}
        if further:
            there = {name: self._there(views, name) for name in further}

            def joined(of: Callable[[str], Tensor]) -> Tensor:
                parts = [(of(name), there[name]) for name in further]
                return torch.cat([part if some is None else part[some] for part, some in parts])

            options["negatives"] = Negatives(
                joined(lambda name: views[name]),
                joined(lambda name: self._identities_of_negatives(views, name, key)),
                joined(lambda name: self._owners(views, name)),
                config.hard_negative_weight,
            )
        if config.debias or config.hardness:
            options |= {"debias": config.debias, "hardness": config.hardness}
            return debiased_info_nce(views[query], key_of(views, key), self.temperature, **options)
        return info_nce(
            views[query],
            key_of(views, key),
            self.temperature,
            guide=self._guide(views, query, key, joined) if further else self._guide(views, query, key),
            label_smoothing=config.label_smoothing,
            blockwise=Blockwise(across=self.across),
            **options,
        )

    def further_terms(self, views: Views) -> dict[str, tuple[float, Tensor]]:
        terms = super().further_terms(views)
        if "mlm" in views and self.config.mlm is not None:
            total, count = self._whole(views, "mlm")["mlm"].sum(dim=0)
            terms["mlm"] = (self.config.mlm.weight, total / count.clamp(min=1))
        return terms

    def metrics(self, views: Views) -> dict[str, float]:
        views = self._before_the_loss(views)
        query, key = (views[side] for side in self.sides)
        temperature = {} if self.config.loss == "cosine_mse" else {"temperature": self.temperature.item()}
        if self.config.loss != "info_nce":
            cosines = (unit_length(query.float()) * unit_length(key.float())).sum(dim=1)
            correlation = torch.corrcoef(torch.stack([cosines, views["score"].float()]))[0, 1]
            return {"correlation": correlation.nan_to_num().item(), **temperature}
        ids = self._identities(views["ids"])
        blockwise = Blockwise(across=self.across)
        accuracy = batch_accuracy(query, key, ids=(ids["anchor"], ids["positive"]), blockwise=blockwise)
        return {"accuracy": accuracy.item(), **temperature}

    def _before_the_loss(self, views: Views) -> Views:
        """The views through the training head: here, and not in ``embed``, for it belongs to the loss, whose parameters
        are whole on every process, however the towers are spread."""
        if self.training_head is None or not self.training:
            return views
        heads: dict[bool, Callable[[Tensor], Tensor]] = {True: self.training_head, False: self.training_head}
        if self.momentum is not None:
            heads[False] = partial(self.momentum, "training_head")
        return views | {name: heads[name in self._queries](views[name]) for name in self.compared if name in views}

    def _further(self, views: Views, key: str) -> list[str]:
        """The views that are negatives besides, in the order in which they stand wherever they are joined: past keys of
        the same kind, and for anchors, whose key is ``positive``, the hard ones before them."""
        hard = [*self.negatives, MINED] if key == "positive" else []
        return [name for name in (*hard, f"past_{key}") if name in views]

    def _identities(self, ids: Tensor) -> dict[str, Tensor]:
        """Of both sides, crossed, so that a text equal to a row's anchor or to its positive is no negative of it."""
        if self.unsupervised:
            return dict.fromkeys(self.sides, ids)
        anchor, positive = ids[:, 0], ids[:, 1]
        return {
            "anchor": torch.stack([anchor, anchor, positive, positive], dim=1),
            "positive": torch.stack([anchor, positive, anchor, positive], dim=1),
        }

    def _identities_of_negatives(self, views: Views, name: str, key: str) -> Tensor:
        """As those of a ``key``. Mined and past ones have the identities of their row's anchor and positive, so that
        they are no negatives of another row with one of these."""
        if name in self.negatives:
            return views["ids"][:, 2 + self.negatives.index(name), None].expand(-1, 4)
        return self._identities(views[f"{MINED}_ids" if name == MINED else "past_ids"])[key]

    def _there(self, views: Views, name: str) -> Tensor | None:
        """(N,) bool: which rows have a hard negative of a role; None where every row of a view counts."""
        if name not in self.negatives:
            return None
        there = views["ids"][:, 2 + self.negatives.index(name)] != NOTHING
        return None if bool(there.all()) else there

    def _owners(self, views: Views, name: str) -> Tensor:
        """The row whose hard negative each one of a view is; -1 for past keys, which are nobody's."""
        rows = torch.arange(len(views["anchor"]), device=views["anchor"].device)
        if name in self.negatives:
            return rows
        # Of mined ones those of the first row come first, then those of the next.
        return rows.repeat_interleave(self.mined) if name == MINED else rows.new_full((len(views[name]),), -1)

    def _guide(
        self, views: Views, query: str, key: str, joined: Callable[[Callable[[str], Tensor]], Tensor] | None = None
    ) -> Guide | None:
        if self.config.guide is None:
            return None
        seen = {f"past_{key}": f"past_guide_{key}"}
        negatives = None if joined is None else joined(lambda name: views[seen.get(name, f"guide_{name}")])
        return Guide(views[f"guide_{query}"], views[f"guide_{key}"], negatives, self.config.guide.margin)

    def _targets(self, score: Tensor) -> Tensor:
        """Cosines from 0 to 1."""
        low, high = self.config.score_range
        if ((score < low) | (score > high)).any():
            raise MmclError(
                f"method.score_range is {low:g} to {high:g}, but there are scores from {score.min():g} to "
                f"{score.max():g}; set it to the range of the data"
            )
        return (score - low) / (high - low)


def _refuse_ring(config: SimcseConfig, across: str | None) -> None:
    if across == "ring":
        setting = "debias and hardness" if config.loss == "info_nce" else f"loss '{config.loss}'"
        raise MmclError(f"training.exchange: {setting} needs the whole batch on every process; set it to gather")


def _refuse_what_does_nothing(config: SimcseConfig, hard: bool) -> None:
    if config.hard_negative_weight != 1.0 and not hard:
        raise MmclError(
            "method.hard_negative_weight: the rows have no hard negatives; name their column, set data.mining, or "
            "leave it out"
        )
    if config.learn_temperature and config.loss == "cosine_mse":
        raise MmclError("method.learn_temperature: loss 'cosine_mse' has no temperature; leave it out")
    if config.training_head and config.matryoshka:
        raise MmclError(
            "method.matryoshka: the first dimensions of what the training head gives are not those of the vectors; "
            "leave it or method.training_head out"
        )
