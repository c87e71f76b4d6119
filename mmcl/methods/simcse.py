"""SimCSE: one text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.config.methods import SimcseConfig
from mmcl.config.model import HeadConfig
from mmcl.config.schema import Config
from mmcl.data.identity import mix
from mmcl.losses import Guide, batch_accuracy, cosent, cosine_mse, debiased_info_nce, info_nce
from mmcl.methods.base import Batch, Loss, Setting, Views, roles_named
from mmcl.methods.masked_language import MaskedLanguage
from mmcl.methods.paired import Paired
from mmcl.models.encoder import Encoder
from mmcl.models.heads import Head
from mmcl.models.text_tower import TextTower
from mmcl.runtime.errors import MmclError, nearest

PAIR = {"anchor": "text", "positive": "text"}
NEGATIVE = re.compile(r"negative(_[1-9][0-9]*)?")


class Simcse(Paired):
    """Each text is told from the batch by its positive: itself under another dropout, or its partner.

    - With the role ``text`` a sentence goes through the tower twice in one batch, and dropout makes the pair.
    - With ``anchor`` and ``positive`` rows are pairs, and ``negative``, ``negative_2``, … are hard negatives: wrong for
      every anchor, and with a weight for their own.
    - With ``score`` the pairs are labelled, and their cosines learn the scores or the order of these.

    A text is no negative of a row that has it as its anchor or as its positive.

    Attributes:
        training_head: maps embeddings before they are compared in training, if the config says so.
        masked_language: predicts hidden tokens besides, if the config says so.
    """

    sides: ClassVar[tuple[str, str]] = ("anchor", "positive")
    start_temperature: ClassVar[float] = 0.05

    config: SimcseConfig

    def __init__(self, config: SimcseConfig, encoder: Encoder, **setting: Unpack[Setting]) -> None:
        super().__init__(config, encoder, **setting)
        self.unsupervised = "text" in self.inputs
        self.negatives = [role for role in self.inputs if NEGATIVE.fullmatch(role)]
        _refuse_what_does_nothing(config, self.negatives)
        if config.training_head:
            kept = encoder.training_head  # of the model to start from
            self.training_head = Head(HeadConfig(kind="tanh"), encoder.dim, encoder.dim) if kept is None else kept
        mlm, embedder = config.mlm, encoder.embedder("text")
        self.masked_language = MaskedLanguage(embedder, mlm.probability) if mlm else None

    @classmethod
    def inputs_of(cls, config: Config) -> dict[str, str]:
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
        return (*self.sides, *self.negatives)

    @property
    def redrawn(self) -> dict[str, str]:
        return {"positive": "text"} if self.unsupervised else {}

    def learned_scale(self) -> tuple[float | None, float | None]:
        return (None, None) if self.config.loss == "cosine_mse" else super().learned_scale()

    def embed(self, batch: Batch) -> Views:
        views = self._embed_texts(batch.inputs) | self.embed_references(batch) | {"ids": batch.ids}
        if "score" in self.inputs:
            views["score"] = batch.inputs["score"]["values"]
        if self.unsupervised:
            for name in self.references:
                views[f"{name}_anchor"] = views[f"{name}_positive"] = views.pop(f"{name}_text")
        if self.masked_language is not None and self.training:
            views["mlm"] = self._predict_tokens(batch)
        return views

    def _embed_texts(self, inputs: dict[str, dict[str, Tensor]]) -> Views:
        embedder = self.encoder.embedder("text")
        padding = cast(TextTower, embedder.tower).padding_id
        if self.unsupervised:
            together = [inputs["text"], inputs.get("positive", inputs["text"])]
            anchor, positive = embedder(**joined(together, padding)).chunk(2)
            return {"anchor": anchor, "positive": positive}
        # Anchors on their own: where they are questions, to pad them to the length of the answers would cost most.
        others = ["positive", *self.negatives]
        vectors = embedder(**joined([inputs[role] for role in others], padding)).chunk(len(others))
        return {"anchor": embedder(**inputs["anchor"])} | dict(zip(others, vectors, strict=True))

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
        options = self._identities(views["ids"])
        if self.negatives:
            options["negatives"] = torch.cat([views[role] for role in self.negatives])
            options["negative_owner"] = torch.arange(len(query), device=query.device).repeat(len(self.negatives))
            options["own_weight"] = config.hard_negative_weight
        if config.debias or config.hardness:
            options |= {"debias": config.debias, "hardness": config.hardness}
            return debiased_info_nce(query, key, self.temperature, symmetric=config.symmetric, **options)
        return info_nce(
            query,
            key,
            self.temperature,
            guide=self._guide(views),
            symmetric=config.symmetric,
            label_smoothing=config.label_smoothing,
            **options,
        )

    def further_terms(self, views: Views) -> dict[str, tuple[float, Tensor]]:
        terms = super().further_terms(views)
        if "mlm" in views and self.config.mlm is not None:
            total, count = views["mlm"].sum(dim=0)
            terms["mlm"] = (self.config.mlm.weight, total / count.clamp(min=1))
        return terms

    def metrics(self, views: Views) -> dict[str, float]:
        views = self._before_the_loss(views)
        query, key = (views[side] for side in self.sides)
        temperature = {} if self.config.loss == "cosine_mse" else {"temperature": self.temperature.item()}
        if self.config.loss != "info_nce":
            cosines = F.cosine_similarity(query.float(), key.float())
            correlation = torch.corrcoef(torch.stack([cosines, views["score"].float()]))[0, 1]
            return {"correlation": correlation.nan_to_num().item(), **temperature}
        ids = self._identities(views["ids"])
        accuracy = batch_accuracy(query, key, ids=ids["ids"], key_ids=ids["key_ids"])
        return {"accuracy": accuracy.item(), **temperature}

    def _before_the_loss(self, views: Views) -> Views:
        """The views through the training head: here, and not in ``embed``, so that every process computes it on the
        whole batch and has the whole gradient of its weights, however the towers are spread."""
        if self.training_head is None or not self.training:
            return views
        return views | {name: self.training_head(views[name]) for name in self.compared}

    def _identities(self, ids: Tensor) -> dict[str, Any]:
        """Crossed, so that a text equal to a row's anchor or to its positive is no negative of the row."""
        if self.unsupervised:
            return {"ids": ids, "key_ids": ids}
        anchor, positive, *hard = ids.unbind(dim=1)
        found = {
            "ids": torch.stack([anchor, anchor, positive, positive], dim=1),
            "key_ids": torch.stack([anchor, positive, anchor, positive], dim=1),
        }
        return found | ({"negative_ids": torch.cat(hard)[:, None].expand(-1, 4)} if hard else {})

    def _guide(self, views: Views) -> Guide | None:
        if self.config.guide is None:
            return None
        hard = torch.cat([views[f"guide_{role}"] for role in self.negatives]) if self.negatives else None
        return Guide(views["guide_anchor"], views["guide_positive"], hard, self.config.guide.margin)

    def _targets(self, score: Tensor) -> Tensor:
        """Cosines from 0 to 1."""
        low, high = self.config.score_range
        if ((score < low) | (score > high)).any():
            raise MmclError(
                f"method.score_range is {low:g} to {high:g}, but there are scores from {score.min():g} to "
                f"{score.max():g}; set it to the range of the data"
            )
        return (score - low) / (high - low)


def joined(parts: Sequence[dict[str, Tensor]], padding: int) -> dict[str, Tensor]:
    """The inputs of several lists of texts as those of one list, padded on the right to its longest text."""
    if "features" in parts[0]:
        return {"features": torch.cat([part["features"] for part in parts])}
    tokens = [part["input_ids"] for part in parts]
    missing = [max(ids.shape[1] for ids in tokens) - ids.shape[1] for ids in tokens]
    masks = [part.get("attention_mask", torch.ones_like(ids)) for part, ids in zip(parts, tokens, strict=True)]
    inputs = {
        "input_ids": torch.cat([F.pad(ids, (0, k), value=padding) for ids, k in zip(tokens, missing, strict=True)]),
        "attention_mask": torch.cat([F.pad(mask, (0, k)) for mask, k in zip(masks, missing, strict=True)]),
    }
    if any("skipped" in part for part in parts):
        counts = [part.get("skipped", ids.new_zeros(len(ids))) for part, ids in zip(parts, tokens, strict=True)]
        inputs["skipped"] = torch.cat(counts)
    return inputs


def _refuse_what_does_nothing(config: SimcseConfig, negatives: Sequence[str]) -> None:
    if config.hard_negative_weight != 1.0 and not negatives:
        raise MmclError(
            "method.hard_negative_weight: the rows have no hard negatives; name their column, or leave it out"
        )
    if config.learn_temperature and config.loss == "cosine_mse":
        raise MmclError("method.learn_temperature: loss 'cosine_mse' has no temperature; leave it out")
    if config.training_head and config.matryoshka:
        raise MmclError(
            "method.matryoshka: the first dimensions of what the training head gives are not those of the vectors; "
            "leave it or method.training_head out"
        )
