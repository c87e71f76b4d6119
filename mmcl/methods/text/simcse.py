"""SimCSE: one text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmcl.config import schema
from mmcl.config.section import Positive
from mmcl.data.augment.texts import split_tokens
from mmcl.data.batches.batch import MINED, Inputs
from mmcl.data.batches.views import View
from mmcl.losses import Blockwise, Guide, batch_accuracy, debiased_info_nce, info_nce
from mmcl.methods.base import Context, roles_named
from mmcl.methods.outputs import Outputs
from mmcl.methods.paired import NEGATIVE, Compared, NegativeGroup, as_negatives, hard_group, joined, view_of
from mmcl.methods.parts.queue import QueueConfig
from mmcl.methods.parts.references import GuideConfig, TeacherConfig
from mmcl.methods.text.text_pairs import PAIR, TextPairs, TextPairsConfig
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, nearest


class SimcseConfig(TextPairsConfig):
    """One text tower, learned from pairs of texts (Gao et al. 2021, arXiv:2104.08821).

    Unsupervised, with the role `text`: a sentence goes through the tower twice, and dropout makes the pair. Supervised,
    with the roles `anchor` and `positive`, and hard negatives.
    """

    name: Literal["simcse"] = "simcse"
    positives: Literal["dropout", "halves"] = "dropout"
    """With `text`: the pair is a sentence twice, under another `dropout` and text augmentation each; or two random
    `halves` of its tokens, which have no word in common, so that what is learned is which words occur together (spans
    without overlap as in DeCLUTR, Giorgi et al. 2021, arXiv:2006.03659)."""
    symmetric: bool = False
    """Tell each positive's anchor from the other anchors as well."""
    hard_negative_weight: Positive = 1.0
    """The paper's α: how much a row's own hard negatives count in its denominator, beside those of other rows."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread evenly over all candidates."""
    debias: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability τ⁺ that a negative is a positive in truth, which the denominator is corrected for (Chuang et al.
    2020, arXiv:2007.00224)."""
    queue: QueueConfig | None = None
    """Positives of former batches as negatives of every anchor; if symmetric, former anchors for every positive
    as well."""
    hardness: float = Field(default=0.0, ge=0.0)
    """Concentration β on hard negatives (Robinson et al. 2021, arXiv:2010.04592)."""
    guide: GuideConfig | None = None
    """Leave out negatives that another model finds too close."""
    teacher: TeacherConfig | None = None
    """Learn the similarities of another model besides."""

    @model_validator(mode="before")
    @classmethod
    def _one_loss(cls, values: Any) -> Any:
        """Runs of older versions have `loss: info_nce` and a range of scores in their `config.yaml`."""
        if isinstance(values, dict) and (loss := values.get("loss")) is not None:
            if loss in ("cosent", "cosine_mse"):
                raise ValueError(f"loss '{loss}' is of pairs with a score; set name: scored_pairs")
            if loss == "info_nce":
                values = {name: value for name, value in values.items() if name not in ("loss", "score_range")}
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> SimcseConfig:
        if self.debias or self.hardness:
            for name in ("label_smoothing", "guide"):
                if getattr(self, name):
                    raise ValueError(f"debias and hardness reweigh all negatives and do not go with {name}")
        return self


class Simcse(TextPairs):
    """InfoNCE from each text to its positive: itself under another dropout, or its partner.

    - With the role ``text`` a sentence goes through the tower twice in one batch, and dropout makes the pair; or the
      two random halves of its tokens are the pair.
    - With ``anchor`` and ``positive`` rows are pairs, and ``negative``, ``negative_2``, … are hard negatives: wrong for
      every anchor, and with a weight for their own. So are those that are mined.

    A text is no negative of a row that has it as its anchor or as its positive.
    """

    Config = SimcseConfig
    config: SimcseConfig

    def __init__(self, config: SimcseConfig, encoder: Towers, context: Context) -> None:
        if context.exchange == "ring" and (config.debias or config.hardness):
            raise MmclError(
                "training.exchange: debias and hardness need the whole batch on every process; set it to gather"
            )
        self.unsupervised = "text" in context.columns
        self.negatives = [role for role in context.columns if NEGATIVE.fullmatch(role)]
        super().__init__(config, encoder, context)
        if config.hard_negative_weight != 1.0 and not (self.negatives or context.mined):
            raise MmclError(
                "method.hard_negative_weight: the rows have no hard negatives; name their column, set data.mining, or "
                "leave it out"
            )
        if config.queue is not None:
            parts: dict[str, nn.Module] = {"text": encoder.embedder("text"), **self.heads}
            self.make_queue(config.queue, self.sides if config.symmetric else self.sides[1:], parts)

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        named = roles_named(config)
        hard = sorted(filter(NEGATIVE.fullmatch, named), key=lambda role: (len(role), role))
        everything = ["text", *PAIR, *(hard or ["negative"])]
        columns = {"text": "text"} if set(named) <= {"text"} else PAIR | dict.fromkeys(hard, "text")
        for role, setting in named.items():
            if role == "score":
                raise MmclError(f"{setting}.score: scores are learned by method scored_pairs; set method.name to that")
            if role not in everything:
                raise MmclError(f"{setting}.{role}: method 'simcse' has no such role; {nearest(role, everything)}")
            if role not in columns:
                raise MmclError(
                    f"{setting}.{role}: method 'simcse' with these columns reads {', '.join(columns)}; leave {role} "
                    "out, or change the columns"
                )
        if cast(SimcseConfig, config.method).positives == "halves":
            if "text" not in columns:
                raise MmclError("method.positives: halves are of a text alone, and these rows are pairs; leave it out")
            if config.augments("text"):  # each half would be of another text
                raise MmclError("method.positives: halves do not go with text_augmentation; leave one of the two out")
        return columns

    def text_views(self) -> dict[str, View]:
        if not self.unsupervised:
            return super().text_views()
        halve = self._halve if self.config.positives == "halves" else None
        return {side: View("text", "text", halve) for side in self.sides}

    def _halve(self, inputs: Inputs, seeds: Tensor, draw: int, size: int | None) -> Inputs:
        """The transform of texts into the first half of their tokens, or into the second."""
        ids = inputs["input_ids"]
        special = torch.tensor(self.encoder.text().processor.tokenizer.all_special_ids, device=ids.device)
        return split_tokens(inputs, seeds, draw, special)

    @property
    def rings(self) -> bool:
        return not (self.config.debias or self.config.hardness)

    @property
    def separate(self) -> tuple[str, ...]:
        return () if self.unsupervised else super().separate

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
        return self.sides if "anchor" in self.columns else None

    @property
    def learning(self) -> tuple[str, ...]:
        """Queries alone, where a momentum copy embeds the keys."""
        if self.key_embedder is None:
            return self.embedding_names
        return self.sides if self.config.symmetric else self.sides[:1]

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        if self.key_embedder is None:
            return {}
        keys: dict[str, Tensor] = {}
        for texts in self.passes(inputs):
            named = {name: of for name, of in texts.items() if name != "anchor" or self.config.symmetric}
            keys |= self.embed_together(partial(self.key_embedder, "text"), named)
        return keys

    def contrast(self, compared: Compared) -> Tensor:
        return self.both_directions(self._info_nce, compared, symmetric=self.config.symmetric)

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
            like = self._identities(outputs.rows.ids)[key]
            for number, name in enumerate(self.negatives):
                ids = outputs.rows.ids[:, 2 + number]
                groups.append(hard_group(compared.key(name), ids, like, owner=rows, guide=guide.get(name)))
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

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        query, key = (view_of(outputs, side) for side in self.sides)
        ids = self._identities(outputs.rows.ids)
        blockwise = Blockwise(across=self.across)
        accuracy = batch_accuracy(query, key, ids=(ids["anchor"], ids["positive"]), blockwise=blockwise)
        return {"accuracy": accuracy.item(), "temperature": self.temperature.item()}

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
