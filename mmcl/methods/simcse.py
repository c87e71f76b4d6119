"""SimCSE: one text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.config.model import HeadConfig
from mmcl.config.section import Positive
from mmcl.data.batches.batch import MINED, Inputs
from mmcl.data.batches.views import View
from mmcl.data.identity import NOTHING
from mmcl.losses import Blockwise, Guide, batch_accuracy, cosent, cosine_mse, debiased_info_nce, info_nce
from mmcl.losses.unit import unit_length
from mmcl.methods.base import Context, roles_named
from mmcl.methods.outputs import Outputs
from mmcl.methods.paired import Compared, NegativeGroup, Paired, as_negatives, joined, view_of
from mmcl.methods.parts.masked_language import MaskedLanguage, MlmConfig
from mmcl.methods.parts.matryoshka import MatryoshkaConfig
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import GuideConfig, TeacherConfig
from mmcl.models.heads import Head
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, nearest

PAIR = {"anchor": "text", "positive": "text"}
MASKED = "masked {}"  # view of a column's texts in which tokens are hidden
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
    """InfoNCE from each text to its positive: itself under another dropout, or its partner.

    - With the role ``text`` a sentence goes through the tower twice in one batch, and dropout makes the pair.
    - With ``anchor`` and ``positive`` rows are pairs, and ``negative``, ``negative_2``, … are hard negatives: wrong for
      every anchor, and with a weight for their own. So are those that are mined.
    - With ``score`` the pairs are labelled, and their cosines learn the scores or the order of these.

    A text is no negative of a row that has it as its anchor or as its positive.

    Attributes:
        masked_language: predicts hidden tokens besides, if the config says so.
    """

    start_temperature: ClassVar[float] = 0.05

    Config = SimcseConfig
    config: SimcseConfig

    def __init__(self, config: SimcseConfig, encoder: Towers, context: Context) -> None:
        if not _goes_across(config):
            _refuse_ring(config, context.exchange)
        self.unsupervised = "text" in context.columns
        self.negatives = [role for role in context.columns if NEGATIVE.fullmatch(role)]
        super().__init__(config, encoder, context)
        _refuse_what_does_nothing(config, hard=bool(self.negatives or context.mined))
        if config.training_head:
            self.add_head("projector", lambda: Head(HeadConfig(kind="tanh"), encoder.width, encoder.width))
        mlm, embedder = config.mlm, encoder.embedder("text")
        self.masked_language = MaskedLanguage(embedder, mlm.probability) if mlm else None
        if config.queue is not None:
            parts: dict[str, nn.Module] = {"text": embedder, **self.heads}
            self.make_queue(config.queue, self.sides if config.symmetric else self.sides[1:], parts)

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        method, named = cast(SimcseConfig, config.method), roles_named(config)
        hard = sorted(filter(NEGATIVE.fullmatch, named), key=lambda role: (len(role), role))
        everything = ["text", *PAIR, *(hard or ["negative"]), "score"]
        if method.loss != "info_nce":
            columns = PAIR | {"score": "number"}
        elif set(named) <= {"text"}:
            columns = {"text": "text"}
        else:
            columns = PAIR | dict.fromkeys(hard, "text")
        for role, setting in named.items():
            if role not in everything:
                raise MmclError(f"{setting}.{role}: method 'simcse' has no such role; {nearest(role, everything)}")
            if role not in columns:
                if role == "score":
                    raise MmclError(f"{setting}.score: scores are learned by method.loss cosent or cosine_mse; set one")
                raise MmclError(
                    f"{setting}.{role}: method 'simcse' with loss '{method.loss}' and these columns reads "
                    f"{', '.join(columns)}; leave {role} out, or change method.loss or the columns"
                )
        return columns

    @property
    def sides(self) -> tuple[str, str]:
        return "anchor", "positive"

    def views(self) -> dict[str, View]:
        texts = [column for column, modality in self.columns.items() if modality == "text"]
        views = {column: View(column, "text") for column in texts}
        if self.unsupervised:
            views = {side: View("text", "text") for side in self.sides}
        if self.masked_language is not None and self.training:
            for number, column in enumerate(self.columns):
                if column in texts:
                    hide, shown = self.masked_language.hiding(number), "anchor" if self.unsupervised else column
                    views[MASKED.format(column)] = View(column, "text", hide, draw_of=shown)
        return views

    @property
    def rings(self) -> bool:
        return _goes_across(self.config)

    @property
    def negatives_per_query(self) -> int | None:
        return super().negatives_per_query if self.config.loss == "info_nce" else None

    def compared_with(self, extra: int = 0) -> str:
        return super().compared_with(extra) if self.config.loss == "info_nce" else "labelled pairs"

    @property
    def separate(self) -> tuple[str, ...]:
        """Anchors: where these are questions, to pad them to the length of the answers would cost most."""
        return () if self.unsupervised else ("anchor",)

    @property
    def embedding_names(self) -> tuple[str, ...]:
        return (*self.sides, *self.negatives, MINED)

    @property
    def optional(self) -> frozenset[str]:
        """Hard negatives: a row without them has those of the batch alone."""
        return frozenset(self.negatives)

    @property
    def mining_roles(self) -> tuple[str, str] | None:
        """Other rows' positives, for anchors."""
        return self.sides if "anchor" in self.columns and self.config.loss == "info_nce" else None

    def learned_scale(self) -> tuple[float | None, float | None]:
        return (None, None) if self.config.loss == "cosine_mse" else super().learned_scale()

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        embeddings: dict[str, Tensor] = {}
        for texts in self._passes(inputs):
            queries = texts if self.key_embedder is None else {n: of for n, of in texts.items() if n in self._queries}
            embeddings |= self.embed_together(self.encoder.embedder("text"), queries)
        if self.masked_language is not None and self.training:
            tower = self.encoder.text_tower()
            hidden = [inputs[name] for name in map(MASKED.format, self.columns) if name in inputs]
            embeddings["mlm"] = torch.stack([self.masked_language(tower, **texts) for texts in hidden]).sum(dim=0)
        return embeddings

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        if self.key_embedder is None:
            return {}
        keys: dict[str, Tensor] = {}
        for texts in self._passes(inputs):
            named = {name: of for name, of in texts.items() if name != "anchor" or self.config.symmetric}
            keys |= self.embed_together(partial(self.key_embedder, "text"), named)
        return keys

    def _passes(self, inputs: Mapping[str, Inputs]) -> list[dict[str, Inputs]]:
        """The texts of each pass through the tower."""
        names = [name for name in self.embedding_names if name in inputs]
        passes = [[name] for name in self.separate] + [[name for name in names if name not in self.separate]]
        return [{name: inputs[name] for name in each} for each in passes]

    @property
    def _queries(self) -> tuple[str, ...]:
        """What is compared with others; all else is keys alone, which a momentum copy embeds if there is one."""
        return self.sides if self.config.symmetric else self.sides[:1]

    def project(self, outputs: Outputs) -> Outputs:
        """The embeddings through the projector, if there is one: every process holds all of its parameters, however the
        towers are spread."""
        if not (self.heads and self.training):
            return outputs
        names = [name for name in self.embedding_names if name in outputs.embeddings]
        projected = {name: self.heads["projector"](outputs.embeddings[name]) for name in names}
        keys = outputs.keys
        if self.momentum is not None:
            keys = {name: self.momentum("projector", vectors) for name, vectors in keys.items()}
        return replace(outputs, embeddings=outputs.embeddings | projected, keys=keys)

    def contrast(self, compared: Compared) -> Tensor:
        outputs, config = compared.outputs, self.config
        if config.loss == "info_nce":
            return self.both_directions(self._info_nce, compared, symmetric=config.symmetric)
        query, key = (view_of(outputs, side) for side in self.sides)
        if config.loss == "cosent":
            return cosent(query, key, outputs.rows.values["score"], self.temperature)
        return cosine_mse(query, key, self._targets(outputs.rows.values["score"]))

    def _info_nce(self, compared: Compared, query: str, key: str, *, symmetric: bool) -> Tensor:
        """InfoNCE from ``query`` to ``key``, among negatives that are keys of its kind."""
        config, outputs, ids = self.config, compared.outputs, self._identities(compared.outputs.rows.ids)
        groups = self._groups(compared, key)
        options: dict[str, Any] = {"ids": (ids[query], ids[key]), "symmetric": symmetric}
        options["negatives"] = as_negatives(groups, config.hard_negative_weight)
        if config.debias or config.hardness:
            options |= {"debias": config.debias, "hardness": config.hardness}
            return debiased_info_nce(outputs.embeddings[query], compared.key(key), self.temperature, **options)
        return info_nce(
            outputs.embeddings[query],
            compared.key(key),
            self.temperature,
            guide=self._guide(outputs, query, key, groups),
            label_smoothing=config.label_smoothing,
            blockwise=Blockwise(across=self.across),
            **options,
        )

    def _groups(self, compared: Compared, key: str) -> list[NegativeGroup]:
        """The negatives besides: for anchors, whose key is ``positive``, the hard ones; then stored keys."""
        outputs, groups = compared.outputs, []
        rows = torch.arange(len(outputs.rows.ids), device=outputs.rows.ids.device)
        guide = outputs.rows.references.get("guide", {})
        if key == "positive":
            for number, name in enumerate(self.negatives):
                ids = outputs.rows.ids[:, 2 + number]
                there = ids != NOTHING
                groups.append(
                    NegativeGroup(
                        compared.key(name),
                        ids[:, None].expand(-1, 4),
                        rows,
                        guide.get(name),
                        None if bool(there.all()) else there,
                    )
                )
            if MINED in outputs.rows.extra_ids:
                # Mined and stored ones have the identities of their row's anchor and positive, so that they are no
                # negatives of another row with one of these. Of mined ones those of the first row come first.
                ids = self._identities(outputs.rows.extra_ids[MINED])[key]
                owner = rows.repeat_interleave(self.context.mined)
                groups.append(NegativeGroup(compared.key(MINED), ids, owner, guide.get(MINED)))
        if key in compared.stored and compared.stored_ids is not None:
            ids, stored_guide = self._identities(compared.stored_ids)[key], compared.stored_guide or {}
            owner = rows.new_full((len(ids),), -1)
            groups.append(NegativeGroup(compared.stored[key], ids, owner, stored_guide.get(key)))
        return groups

    def added_terms(self, outputs: Outputs) -> dict[str, tuple[float, Tensor]]:
        terms = super().added_terms(outputs)
        if "mlm" in outputs.embeddings and self.config.mlm is not None:
            total, count = self._global({"mlm": outputs.embeddings["mlm"]})["mlm"].sum(dim=0)
            terms["mlm"] = (self.config.mlm.weight, total / count.clamp(min=1))
        return terms

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        query, key = (view_of(outputs, side) for side in self.sides)
        temperature = {} if self.config.loss == "cosine_mse" else {"temperature": self.temperature.item()}
        if self.config.loss != "info_nce":
            cosines = (unit_length(query.float()) * unit_length(key.float())).sum(dim=1)
            correlation = torch.corrcoef(torch.stack([cosines, outputs.rows.values["score"].float()]))[0, 1]
            return {"correlation": correlation.nan_to_num().item(), **temperature}
        ids = self._identities(outputs.rows.ids)
        blockwise = Blockwise(across=self.across)
        accuracy = batch_accuracy(query, key, ids=(ids["anchor"], ids["positive"]), blockwise=blockwise)
        return {"accuracy": accuracy.item(), **temperature}

    def _identities(self, ids: Tensor) -> dict[str, Tensor]:
        """Of both sides, crossed, so that a text equal to a row's anchor or to its positive is no negative of it."""
        if self.unsupervised:
            return dict.fromkeys(self.sides, ids)
        anchor, positive = ids[:, 0], ids[:, 1]
        return {
            "anchor": torch.stack([anchor, anchor, positive, positive], dim=1),
            "positive": torch.stack([anchor, positive, anchor, positive], dim=1),
        }

    def _guide(self, outputs: Outputs, query: str, key: str, groups: Sequence[NegativeGroup]) -> Guide | None:
        if self.config.guide is None:
            return None
        guide = outputs.rows.references["guide"]
        sides = guide[self.column(query)], guide[self.column(key)]
        return Guide(*sides, joined(groups, "guide") if groups else None, self.config.guide.margin)

    def _targets(self, score: Tensor) -> Tensor:
        """Cosines from 0 to 1."""
        low, high = self.config.score_range
        if ((score < low) | (score > high)).any():
            raise MmclError(
                f"method.score_range is {low:g} to {high:g}, but there are scores from {score.min():g} to "
                f"{score.max():g}; set it to the range of the data"
            )
        return (score - low) / (high - low)


def _goes_across(config: SimcseConfig) -> bool:
    """Whether the loss can be computed by each process for its own rows."""
    return config.loss == "info_nce" and not config.debias and not config.hardness


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
