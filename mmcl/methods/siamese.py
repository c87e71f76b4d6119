"""Siamese networks: one tower learns which things are near (Hadsell et al. 2006; FaceNet, Schroff et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.config.section import Positive
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import View
from mmcl.losses import Mining, contrastive, label_accuracy, mined_triplet, triplet
from mmcl.losses.logits.similarity import prepare
from mmcl.methods.base import Context, Loss, Method, refuse_unknown_roles, roles_named
from mmcl.methods.outputs import Outputs, Rows
from mmcl.methods.step import Step
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError

MARGINS = {"label": 0.2, "negative": 0.2, "same": 1.0}  # by the role that tells what the rows are


class SiameseConfig(MethodConfig):
    """One tower of images or of texts, learned from distances of unit vectors. The columns say what a row is:

    - `image` or `text`, and `label`: triplets are mined in the batch (Hermans et al. 2017, arXiv:1703.07737).
    - `anchor`, `positive` and `negative`: a triplet (FaceNet, Schroff et al. 2015, arXiv:1503.03832).
    - `first`, `second` and `same`: a pair of the same thing (1) or of different ones (0) (Hadsell et al. 2006).

    Where `data.columns` names none of them, it is the first.
    """

    name: Literal["siamese"] = "siamese"
    modality: Literal["image", "text"] | None = None
    """What is compared; texts where `model` has a text tower and images where it has none, if absent."""
    margin: Positive | None = None
    """Distance, of at most 2, that different things are to have, 1 if absent; in triplets, by which the negative is to
    be farther than the positive, 0.2 if absent."""
    mining: Mining = "batch_hard"
    """With labels: of each anchor the farthest positive and the nearest negative; or all triplets that cost something
    (`all`), or of these those in which the negative is farther than the positive (`semi_hard`)."""


class Siamese(Method):
    """Contrastive loss of pairs, or triplet loss of triplets that are given, or mined from labels."""

    Config = SiameseConfig
    config: SiameseConfig
    fractions: ClassVar[Mapping[str, str]] = {
        "accuracy": "Accuracy within the batch",
        "anchors": "Rows with a positive in the batch",
    }

    def __init__(self, config: SiameseConfig, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        (self.tower,) = {"image", "text"} & set(self.columns.values())
        self.kind = next(role for role in MARGINS if role in self.columns)
        self.margin = config.margin or MARGINS[self.kind]
        if config.mining != "batch_hard" and self.kind != "label":
            raise MmclError(f"method.mining: {config.mining} is of rows with labels, which these are not; leave it out")

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        assert isinstance(config.method, SiameseConfig), "the method of this config"
        modality = config.method.modality or ("image" if config.model.text is None else "text")
        kinds: list[dict[str, str]] = [
            {modality: modality, "label": "label"},
            {"anchor": modality, "positive": modality, "negative": modality},
            {"first": modality, "second": modality, "same": "number"},
        ]
        named = roles_named(config)
        columns = max(kinds, key=lambda kind: len(kind.keys() & named.keys()))
        refuse_unknown_roles(config, columns)
        return columns

    def compared_with(self, extra: int = 0) -> str:
        mined = f"{self.config.mining.replace('_', '-')} triplets of the batch"
        return {"label": mined, "negative": "one negative per anchor", "same": "labelled pairs"}[self.kind]

    def views(self) -> dict[str, View]:
        items = [role for role, modality in self.columns.items() if modality == self.tower]
        return {role: View(role, self.tower, self.augment_of(role)) for role in items}

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """All items in one pass: with statistics of their own, negatives could be told by these."""
        items = {name: inputs[name] for name in self.views()}
        return self.embed_together(self.encoder.embedder(self.tower), items, self.tower)

    def project(self, outputs: Outputs) -> Outputs:
        """Unit vectors: the distances that are learned order things as the cosines of a search do."""
        vectors = prepare(*outputs.embeddings.values(), similarity="cosine")
        return replace(outputs, embeddings=dict(zip(outputs.embeddings, vectors, strict=True)))

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        vectors, rows = [*outputs.embeddings.values()], outputs.rows
        if self.kind == "same":
            return Loss(contrastive(vectors[0], vectors[1], same_things(rows), self.margin))
        if self.kind == "negative":
            return Loss(triplet(vectors[0], vectors[1], vectors[2], self.margin))
        return Loss(mined_triplet(vectors[0], rows.labels["label"], self.margin, mining=self.config.mining))

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """The share of pairs on their side of half the margin, of triplets whose positive is the nearer, or of the
        items with a positive in the batch that are nearest to one."""
        first, *others = outputs.embeddings.values()
        if self.kind == "label":
            labels = outputs.rows.labels["label"]
            _, which, counts = labels.unique(return_inverse=True, return_counts=True)
            anchors = (counts > 1)[which].float().mean()
            return {"accuracy": label_accuracy(first, labels).item(), "anchors": anchors.item()}
        distances = [(first - other).norm(dim=1) for other in others]
        if self.kind == "negative":
            right = distances[0] < distances[1]
        else:
            right = (distances[0] < self.margin / 2) == same_things(outputs.rows)
        return {"accuracy": right.float().mean().item()}


def same_things(rows: Rows) -> Tensor:
    """(N,) bool of the column that says whether the two of a pair are the same."""
    same = rows.values["same"]
    if not ((same == 0) | (same == 1)).all():
        raise MmclError(
            f"data.columns.same: there are numbers from {same.min():g} to {same.max():g}; give 1 for pairs of the same "
            "thing and 0 for pairs of different ones"
        )
    return same == 1
