"""What the methods share whose rows are pairs in one space, compared at a temperature."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from mmcl.losses import Blockwise, batch_accuracy, distillation, matryoshka
from mmcl.methods.base import Loss, Method, Setting, Views
from mmcl.methods.parts.momentum import MomentumCopy
from mmcl.methods.parts.queue import MemoryQueue, QueueConfig
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

TEACHER_TEMPERATURE = 0.01  # at which CLIP models end


class Paired(Method):
    """Two views of a row, compared at a temperature that may be learned; a subclass says by which loss.

    Where the config names no temperature to start at, that of the encoder is taken.

    Attributes:
        logit_scale: ln(1/τ).
        queue: keys of past batches, if the config asks for them.
        momentum: what embeds keys then, if the config asks for that.
    """

    sides: ClassVar[tuple[str, str]]
    """The two views that belong together."""

    start_temperature: ClassVar[float]
    """Where neither the config nor the model to start from names one."""

    scale_bounds: ClassVar[tuple[float, float]] = (0.0, math.log(100.0))
    """Of ln(1/τ)."""

    config: Any

    def __init__(self, config: Any, encoder: Towers, **setting: Unpack[Setting]) -> None:
        super().__init__(config, encoder, **setting)
        start = _start(config.temperature, encoder, self.start_temperature)
        self.logit_scale = nn.Parameter(torch.tensor(start), requires_grad=config.learn_temperature)
        self.queue: MemoryQueue | None = None
        self.momentum: MomentumCopy | None = None
        self._seen: list[Views] = []  # what goes into the queue after the step
        for dim in config.matryoshka.dims if config.matryoshka else ():
            if dim >= encoder.width:
                raise MmclError(
                    f"method.matryoshka.dims: {dim} is no part of the model's {encoder.width} dimensions, of which all "
                    "are learned anyway; leave it out"
                )

    def keep_past(self, settings: QueueConfig, roles: Sequence[str], parts: Mapping[str, nn.Module]) -> None:
        """Make the queue of the keys that ``settings`` describe, and the momentum copy, if any.

        Args:
            settings: of the queue.
            roles: whose keys the loss compares with those of past batches.
            parts: name to each module that makes keys.
        """
        dims = dict.fromkeys(roles, self.encoder.width)
        if "guide" in self.references:
            dims |= {f"guide_{role}": self.references["guide"].width for role in roles}
        columns = min(len(self.sides), len(self.inputs))
        self.queue = MemoryQueue(settings.size, dims, columns, settings.start)
        if settings.momentum is not None:
            self.momentum = MomentumCopy(parts, settings.momentum)

    @property
    def key_embedder(self) -> MomentumCopy | None:
        """What embeds keys, in training, if it is not what embeds queries."""
        return self.momentum if self.training else None

    @property
    def temperature(self) -> Tensor:
        """τ = exp(-logit_scale)."""
        return (-self.logit_scale).exp()

    def learned_scale(self) -> tuple[float | None, float | None]:
        """``logit_scale`` and ``logit_bias`` as they stand, for the encoder to keep; no bias for a method without."""
        return self.logit_scale.item(), None

    def global_views(self, views: Views) -> Views:
        """This process's own, where the contrast goes across processes, and else those of all."""
        return views if self.across else super().global_views(views)

    def _whole(self, views: Views, *names: str) -> Views:
        """Some of the views that ``loss`` sees, of the whole batch."""
        some = {name: views[name] for name in names}
        return distributed.gather_views(some) if self.across else some

    @property
    def compared(self) -> tuple[str, ...]:
        """The views, where there are such, that are embeddings by the encoder that learns."""
        return (*self.sides, *(f"{kind}_{side}" for kind in ("key", "past") for side in self.sides))

    @abstractmethod
    def contrast(self, views: Views) -> Tensor:
        """The loss of the global batch from the views alone, whatever the number of their dimensions."""

    def _both_ways(self, tell_apart: Callable[..., Tensor], views: Views, *, symmetric: bool) -> Tensor:
        """The contrast of both directions in one go, or of each by itself where there is a queue: past keys are
        candidates of queries and past queries of keys, so that no direction is the other's transpose.

        Args:
            tell_apart: the loss of (views, query, key, symmetric=): the views called ``query`` by those called ``key``.
            views: of the global batch.
            symmetric: from keys to queries as well.
        """
        if self.queue is None:
            return tell_apart(views, *self.sides, symmetric=symmetric)
        ways = (self.sides, self.sides[::-1]) if symmetric else (self.sides,)
        return torch.stack([tell_apart(views, *way, symmetric=False) for way in ways]).mean()

    def loss(self, views: Views) -> Loss:
        """The contrast, at all dimensions asked for, and what the config adds to it."""
        views = self._with_past(views)
        cut = self.config.matryoshka
        if cut is None:
            value = self.contrast(views)
        else:
            names = [name for name in self.compared if name in views]
            value = matryoshka(self.contrast, views, names, cut.dims, cut.weights)
        terms = self.further_terms(views)
        if not terms:
            return Loss(value)
        parts = {"contrastive": value} | {name: term for name, (_, term) in terms.items()}
        return Loss(value + sum(weight * term for weight, term in terms.values()), parts)

    def _with_past(self, views: Views) -> Views:
        """The views, and under ``past_NAME`` what the queue holds; the keys among them are noted for it."""
        if self.queue is None:
            return views
        if self.training:
            rows = {name: key_of(views, name).detach() for name in self.queue.names}
            self._seen.append(rows | {"ids": views["ids"][:, : self.queue.ids.shape[1]]})
        past = self.queue.past()
        if self.across:  # each process brings its share of what all of them hold
            past = {name: rows[distributed.rank() :: distributed.world_size()] for name, rows in past.items()}
        dtype = views[self.sides[0]].dtype  # that of the products with keys of the batch
        return views | {f"past_{name}": rows.to(dtype) if name in self.sides else rows for name, rows in past.items()}

    def further_terms(self, views: Views) -> dict[str, tuple[float, Tensor]]:
        """What is added to the contrast: name to weight and value."""
        config = self.config.teacher
        if config is None:
            return {}
        query, key = self.sides
        views = self._whole(views, query, key, f"teacher_{query}", f"teacher_{key}")
        term = distillation(
            views[query],
            views[key],
            views[f"teacher_{query}"],
            views[f"teacher_{key}"],
            self.temperature,
            math.exp(-_start(config.temperature, self.references["teacher"], TEACHER_TEMPERATURE)),
        )
        return {"distillation": (config.weight, term)}

    def metrics(self, views: Views) -> dict[str, float]:
        query, key = self.sides
        blockwise = Blockwise(across=self.across)
        accuracy = batch_accuracy(views[query], views[key], ids=views["ids"], blockwise=blockwise)
        return {"accuracy": accuracy.item(), "temperature": self.temperature.item()}

    @torch.no_grad()
    def after_step(self) -> None:
        # Clamped here rather than in the loss, where a scale beyond the clamp would get no gradient to come back with.
        self.logit_scale.clamp_(*self.scale_bounds)
        if self.momentum is not None:
            self.momentum.update()
        if self.queue is not None and self._seen:
            whole = [self._whole(rows, *rows) for rows in self._seen]  # one by one: in the order of a single process
            self.queue.push({name: torch.cat([rows[name] for rows in whole]) for name in whole[0]})
            self._seen.clear()

    def forget_step(self) -> None:
        self._seen.clear()


def key_of(views: Views, role: str) -> Tensor:
    """What others are compared with of a role: ``key_ROLE`` where the role is also a query, embedded by another."""
    return views.get(f"key_{role}", views[role])


def _start(temperature: float | None, encoder: Towers, otherwise: float) -> float:
    """ln(1/τ) of the temperature asked for, else of the encoder, else of ``otherwise``."""
    if temperature is not None:
        return -math.log(temperature)
    return -math.log(otherwise) if encoder.logit_scale is None else encoder.logit_scale
