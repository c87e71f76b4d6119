"""What the methods share whose rows are pairs in one space, compared at a temperature."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmcl.data.batches.views import VALUES
from mmcl.data.identity import NOTHING
from mmcl.losses import Blockwise, Negatives, batch_accuracy, distillation, matryoshka
from mmcl.methods.base import Context, Loss, Method
from mmcl.methods.outputs import Outputs, Rows
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.methods.parts.queue import MemoryQueue, QueueConfig, require_start
from mmcl.methods.step import Step
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

TEACHER_TEMPERATURE = 0.01  # at which CLIP models end
NEGATIVE = re.compile(r"negative(_[1-9][0-9]*)?")  # roles of hard negatives
GUIDE = "guide_{}"  # what a queue calls the embeddings that a guide has of a side


@dataclass(frozen=True)
class Compared:
    """What a contrast is computed from.

    Attributes:
        outputs: of the batch.
        stored: side to the keys that a queue holds of former batches, (F, D).
        stored_ids: (F, K) their identities.
        stored_guide: side to what a guide makes of them.
    """

    outputs: Outputs
    stored: dict[str, Tensor]
    stored_ids: Tensor | None = None
    stored_guide: Mapping[str, Tensor] | None = None

    def key(self, name: str) -> Tensor:
        """What queries are compared with: by a momentum copy, if there is one."""
        return key_of(self.outputs, name)


@dataclass(frozen=True)
class NegativeGroup:
    """Negatives of one kind beside the other rows' keys.

    Attributes:
        vectors: (M, D).
        ids: (M, C) identities.
        owner: (M,) the row whose hard negative each is, -1 for none; None where no negative has one.
        guide: (M, F) what a guide makes of them.
        there: (M,) bool; what is False is left out. None: all are there.
    """

    vectors: Tensor
    ids: Tensor
    owner: Tensor | None = None
    guide: Tensor | None = None
    there: Tensor | None = None

    def of(self, name: str) -> Tensor:
        """One attribute of those that are there."""
        tensor = getattr(self, name)
        return tensor if self.there is None else tensor[self.there]


def as_negatives(groups: Sequence[NegativeGroup], weight: float = 1.0) -> Negatives | None:
    """All groups as a loss takes them, ``weight`` being that of a row's own ones; None without groups."""
    if not groups:
        return None
    owned = groups[0].owner is not None
    vectors, ids = joined(groups, "vectors"), joined(groups, "ids")
    return Negatives(vectors, ids, joined(groups, "owner") if owned else None, weight)


def hard_group(vectors: Tensor, ids: Tensor, like: Tensor, **more: Tensor | None) -> NegativeGroup:
    """The hard negatives of a column of the rows, of which some may have none.

    Args:
        vectors: (N, D).
        ids: (N,) identities, ``NOTHING`` where a row has none.
        like: (N, C) identities of the rows, as many as which each negative gets of its own.
        more: other attributes of the group.
    """
    there = ids != NOTHING
    return NegativeGroup(
        vectors, ids[:, None].expand(-1, like.shape[1]), there=None if bool(there.all()) else there, **more
    )


def joined(groups: Sequence[NegativeGroup], name: str) -> Tensor:
    """An attribute of all groups."""
    return torch.cat([group.of(name) for group in groups])


class Paired(Method):
    """Two views of a row, compared at a temperature that may be learned; a subclass says by which loss.

    Where the config names no temperature to start at, that of the encoder is taken.

    Attributes:
        logit_scale: ln(1/τ).
        queue: keys of former batches, if the config asks for them.
        momentum: what embeds keys then, if the config asks for that.
    """

    start_temperature: ClassVar[float]
    """Where neither the config nor the model to start from names one."""

    scale_bounds: ClassVar[tuple[float, float]] = (0.0, math.log(100.0))
    """Of ln(1/τ)."""

    fractions: ClassVar[Mapping[str, str]] = {"accuracy": "Accuracy within the batch"}

    config: Any

    def __init__(self, config: Any, encoder: Towers, context: Context) -> None:
        super().__init__(config, encoder, context)
        start = _start(config.temperature, encoder, self.start_temperature)
        self.logit_scale = nn.Parameter(torch.tensor(start), requires_grad=config.learn_temperature)
        self.queue: MemoryQueue | None = None
        self.momentum: MomentumCopy | None = None
        for dim in config.matryoshka.dims if config.matryoshka else ():
            if dim >= encoder.width:
                raise MmclError(
                    f"method.matryoshka.dims: {dim} is no part of the model's {encoder.width} dimensions, of which all "
                    "are learned anyway; leave it out"
                )

    def make_queue(self, settings: QueueConfig, sides: Sequence[str], parts: Mapping[str, nn.Module]) -> None:
        """Make the queue of keys that ``settings`` describe, and the momentum copy, if any.

        Args:
            settings: of the queue.
            sides: whose keys the loss compares with those of former batches.
            parts: name to each module that makes keys.
        """
        dims = dict.fromkeys(sides, self.encoder.width)
        if "guide" in self.references:
            dims |= {GUIDE.format(side): self.references["guide"].width for side in sides}
        columns = min(len(self.sides), len(self.columns)) + ("label" in self.columns.values())
        self.queue = MemoryQueue(settings.size, dims, columns, settings.start)
        if settings.momentum is not None:
            self.momentum = MomentumCopy(parts, settings.momentum)

    @property
    def stored_negatives(self) -> int:
        return 0 if self.queue is None else self.queue.size

    def require_steps(self, steps: int) -> None:
        if self.queue is not None:
            require_start(self.queue, steps, "method.queue.start")

    @property
    def rings(self) -> bool:
        return True

    @property
    def negatives_per_query(self) -> int | None:
        texts = [modality for modality in self.columns.values() if modality not in VALUES]
        hard = max(0, len(texts) - 2) + self.context.mined
        return self.context.batch_size - 1 + hard * self.context.batch_size

    @property
    @abstractmethod
    def sides(self) -> tuple[str, str]:
        """The two views that belong together."""

    @property
    def key_embedder(self) -> MomentumCopy | None:
        """What embeds keys, in training, if it is not what embeds queries."""
        return self.momentum if self.training else None

    @property
    def temperature(self) -> Tensor:
        """τ = exp(-logit_scale)."""
        return (-self.logit_scale).exp()

    def card(self) -> dict[str, Any]:
        return {"matryoshka": self.config.matryoshka.dims} if self.config.matryoshka else {}

    def learned_scale(self) -> tuple[float | None, float | None]:
        """``logit_scale`` and ``logit_bias`` as they stand, for the encoder to keep; no bias for a method without."""
        return self.logit_scale.item(), None

    def column(self, side: str) -> str:
        """The column that a side is a view of."""
        return self.views()[side].column

    def identities(self, rows: Rows) -> Tensor:
        """(N, C) of the rows: those of their items and, where the method reads any, their labels."""
        labels = [label[:, None] for role, label in rows.labels.items() if role in self.columns]  # not those of a probe
        return torch.cat([rows.ids[:, : len(self.sides)], *labels], dim=1)  # not those of their hard negatives

    @property
    def embedding_names(self) -> tuple[str, ...]:
        """The embeddings that lie in the space of the encoder that learns."""
        return self.sides

    @abstractmethod
    def contrast(self, compared: Compared) -> Tensor:
        """The loss of the global batch from embeddings alone, whatever the number of their dimensions."""

    def both_directions(self, info_nce: Callable[..., Tensor], compared: Compared, *, symmetric: bool) -> Tensor:
        """The contrast of both directions in one go, or of each by itself where there is a queue: stored keys are
        candidates of queries and stored queries of keys, so that no direction is the other's transpose.

        Args:
            info_nce: the loss of (compared, query, key, symmetric=) between the sides called ``query`` and ``key``.
            compared: of the global batch.
            symmetric: from keys to queries as well.
        """
        if self.queue is None:
            return info_nce(compared, *self.sides, symmetric=symmetric)
        ways = (self.sides, self.sides[::-1]) if symmetric else (self.sides,)
        return torch.stack([info_nce(compared, *way, symmetric=False) for way in ways]).mean()

    def loss(self, outputs: Outputs, step: Step) -> Loss:
        """The contrast, at all dimensions asked for, and what the config adds to it."""
        compared = self._with_stored(outputs)
        value = self.contrast(compared) if self.config.matryoshka is None else self._at_all_dimensions(compared)
        terms = self.added_terms(outputs)
        if not terms:
            return Loss(value)
        parts = {"contrastive": value} | {name: term for name, (_, term) in terms.items()}
        return Loss(value + sum(weight * term for weight, term in terms.values()), parts)

    def _at_all_dimensions(self, compared: Compared) -> Tensor:
        kinds = {"embeddings": compared.outputs.embeddings, "keys": compared.outputs.keys, "stored": compared.stored}
        names = [(kind, name) for kind, of in kinds.items() for name in of if name in self.embedding_names]

        def contrast(vectors: dict[str, Tensor]) -> Tensor:
            cut: dict[str, dict[str, Tensor]] = {kind: dict(of) for kind, of in kinds.items()}
            for kind, name in names:
                cut[kind][name] = vectors[f"{kind}/{name}"]
            outputs = replace(compared.outputs, embeddings=cut["embeddings"], keys=cut["keys"])
            return self.contrast(replace(compared, outputs=outputs, stored=cut["stored"]))

        vectors = {f"{kind}/{name}": kinds[kind][name] for kind, name in names}
        return matryoshka(contrast, vectors, list(vectors), self.config.matryoshka.dims, self.config.matryoshka.weights)

    def _with_stored(self, outputs: Outputs) -> Compared:
        """The outputs, beside them what the queue holds."""
        stored = {} if self.queue is None else self.queue.contents()
        if not stored:
            return Compared(outputs, {})
        if self.across:  # each process brings its share of what all of them hold
            stored = {name: rows[distributed.rank() :: distributed.world_size()] for name, rows in stored.items()}
        dtype = outputs.embeddings[self.sides[0]].dtype  # that of the products with keys of the batch
        vectors = {side: stored[side].to(dtype) for side in self.sides if side in stored}
        guide = {side: stored[GUIDE.format(side)] for side in vectors if GUIDE.format(side) in stored}
        return Compared(outputs, vectors, stored["ids"], guide)

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Some of what the loss gets, of the global batch."""
        return distributed.gather_views(tensors) if self.across else tensors

    def added_terms(self, outputs: Outputs) -> dict[str, tuple[float, Tensor]]:
        """What is added to the contrast: name to weight and value."""
        if "teacher" not in self.references:
            return {}
        config = self.config.teacher
        query, key = self.sides
        teacher = outputs.rows.references["teacher"]
        rows = self.gathered(
            {
                "query": view_of(outputs, query),
                "key": view_of(outputs, key),
                "teacher's query": teacher[self.column(query)],
                "teacher's key": teacher[self.column(key)],
            }
        )
        temperature = math.exp(-_start(config.temperature, self.references["teacher"], TEACHER_TEMPERATURE))
        vectors = (rows["query"], rows["key"], rows["teacher's query"], rows["teacher's key"])
        return {"distillation": (config.weight, distillation(*vectors, self.temperature, temperature))}

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        query, key = (view_of(outputs, side) for side in self.sides)
        ids = self.identities(outputs.rows)
        accuracy = batch_accuracy(query, key, ids=ids, blockwise=Blockwise(across=self.across))
        return {"accuracy": accuracy.item(), "temperature": self.temperature.item()}

    @torch.no_grad()
    def after_update(self, outputs: Outputs, step: Step) -> None:
        # Clamped here rather than in the loss, where a scale beyond the clamp would get no gradient to come back with.
        self.logit_scale.clamp_(*self.scale_bounds)
        if self.momentum is not None:
            self.momentum.update()
        if self.queue is not None:
            # One by one: in the order of a single process.
            batches = [self.gathered(self._stored_of(batch, self.queue)) for batch in outputs.each()]
            self.queue.push({name: torch.cat([rows[name] for rows in batches]) for name in batches[0]})

    def _stored_of(self, outputs: Outputs, queue: MemoryQueue) -> dict[str, Tensor]:
        """What a queue keeps of a batch."""
        sides = [side for side in self.sides if side in queue.names]
        rows = {side: key_of(outputs, side) for side in sides}
        for side in sides:
            if GUIDE.format(side) in queue.names:
                rows[GUIDE.format(side)] = outputs.rows.references["guide"][self.column(side)]
        return rows | {"ids": self.identities(outputs.rows)[:, : queue.ids.shape[1]]}


def key_of(outputs: Outputs, name: str) -> Tensor:
    """What others are compared with: by a momentum copy, if there is one, and else by the encoder itself."""
    return outputs.keys[name] if name in outputs.keys else outputs.embeddings[name]


def view_of(outputs: Outputs, side: str) -> Tensor:
    """The embeddings of a side, by the encoder that learns where it embeds it."""
    return outputs.embeddings[side] if side in outputs.embeddings else outputs.keys[side]


def _start(temperature: float | None, encoder: Towers, otherwise: float) -> float:
    """ln(1/τ) of the temperature asked for, else of the encoder, else of ``otherwise``."""
    if temperature is not None:
        return -math.log(temperature)
    return -math.log(otherwise) if encoder.logit_scale is None else encoder.logit_scale
