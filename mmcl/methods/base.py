"""The contract between a method and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NotRequired, Self, TypeAlias, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from mmcl.config import schema
from mmcl.config.methods import MethodConfig
from mmcl.config.section import Section
from mmcl.data.augment.images import Augmentation
from mmcl.data.batches.batch import MINED, Batch
from mmcl.data.batches.inputs import join_texts
from mmcl.data.batches.towers import Reading
from mmcl.models.heads import Head
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError, nearest

REFERENCES = ("teacher", "guide")

Views: TypeAlias = dict[str, Tensor]
"""View name to (N, D) embeddings; beside them whatever the loss needs of the rows, such as ``ids`` or a label.

What is gathered over devices is so along its first dimension, and nothing else need be known about it.
"""


@dataclass
class Loss:
    """A scalar to minimise, and the parts it is made of where a method has several."""

    value: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Setting(TypedDict):
    """What a method is made with beside its config and the encoder.

    Attributes:
        inputs: role to modality (``image``, ``text``, ``number``) of the columns to read, as ``inputs_of`` says.
        batch_size: rows of the global batch, on which it can depend where a loss starts.
        across: how a loss meets the rows of other processes, ``gather`` or ``ring``; None where there are none.
        mined: mined hard negatives that each row has in a batch, if it has any; see ``Method.minable``.
        augmentation: random changes of the training pictures.
        references: the models of ``config.teacher`` and ``config.guide``, by those names. They are no parts of the
            method: not among its parameters, not in its state, and so never trained nor saved.
    """

    inputs: dict[str, str]
    batch_size: int
    across: NotRequired[Literal["gather", "ring"] | None]
    mined: NotRequired[int]
    augmentation: NotRequired[Augmentation | None]
    references: NotRequired[Mapping[str, Towers] | None]


class Method(nn.Module, ABC):
    """How rows become views, views become embeddings, and embeddings become a loss.

    ``loss`` sees embeddings only, never a model input, and returns the loss of the *global* batch: it sees all of that,
    or goes ``across`` processes by itself (see ``global_views``). So gradient caching is written once, outside, for
    every method.

    Args:
        config: of the method.
        encoder: the towers to train.
        setting: see :class:`Setting`.
    """

    Config: ClassVar[type[MethodConfig]]
    """Its settings."""

    training_head: Head | None
    """What stands between the embeddings and the loss, and is kept apart from the encoder in the model folder."""

    apart: ClassVar[tuple[str, ...]] = ()
    """Roles whose texts pass through the tower by themselves; all others pass together."""

    def __init__(self, config: Section, encoder: Towers, **setting: Unpack[Setting]) -> None:
        super().__init__()
        if unknown := setting.keys() - Setting.__annotations__.keys():
            raise TypeError(f"a method takes no {', '.join(sorted(unknown))}")
        self.config = config
        self.encoder = encoder
        self.inputs = dict(setting["inputs"])
        self.augmentation = setting.get("augmentation")
        self.batch_size = setting["batch_size"]
        self.across = setting.get("across")
        self.mined = setting.get("mined", 0)
        self.training_head = None
        self.references = dict(setting.get("references") or {})  # a plain dict: nn.Module does not look into it
        for reference in self.references.values():
            reference.eval().requires_grad_(False)
        configured = {name for name in REFERENCES if getattr(config, name, None) is not None}
        if configured != set(self.references):
            raise ValueError(f"the config names {sorted(configured)}, but the models given are {list(self.references)}")
        if self.mined and self.minable is None:
            raise MmclError(
                "data.mining: hard negatives are mined for clip and for simcse on pairs (anchor and positive, loss "
                "info_nce), and not for what this config trains; leave it out"
            )

    @classmethod
    @abstractmethod
    def inputs_of(cls, config: schema.Config) -> dict[str, str]:
        """Role to modality of the columns that ``config`` makes the method read.

        Raises:
            MmclError: the config names columns of a role that the method has not.
        """

    @property
    def extra(self) -> dict[str, int]:
        """Role to the number of further items wanted beside every global batch; none by default."""
        return {}

    @property
    def optional(self) -> frozenset[str]:
        """Roles of texts that a row may lack, which is used all the same: its identity is ``NOTHING`` there, and
        whatever stands in for the item is to be left out; none by default."""
        return frozenset()

    @property
    def minable(self) -> tuple[str, str] | None:
        """Two roles: hard negatives of the first can be mined among the items of the second, and are taken from
        ``Batch.extra`` under ``MINED``; None where the method has no use for them."""
        return None

    @property
    def redrawn(self) -> dict[str, str]:
        """New role to the role that it is another random draw of, where the data are changed at random."""
        return {}

    @property
    def reading(self) -> Reading:
        """What is read of every row."""
        return Reading(self.inputs, self.encoder, self.optional, self.redrawn, self.extra, self.references)

    @abstractmethod
    def embed(self, batch: Batch) -> Views:
        """The views of a batch; this is where gradient flows."""

    def embed_together(self, embed: Callable[..., Tensor], texts: Mapping[str, dict[str, Tensor]]) -> Views:
        """The texts of several roles, or of none, in one pass of what embeds them.

        In shards a tower meets those of other processes in every pass, and waits for a process that has fewer: a role
        that is there in some micro-batches only must have no pass of its own.
        """
        if len(texts) < 2:
            return {role: embed(**inputs) for role, inputs in texts.items()}
        padding = cast(TextTower, self.encoder.embedder("text").tower).padding_id
        counts = [len(next(iter(inputs.values()))) for inputs in texts.values()]
        vectors = embed(**join_texts(list(texts.values()), padding)).split(counts)
        return dict(zip(texts, vectors, strict=True))

    def embed_references(self, batch: Batch) -> Views:
        """``teacher_ROLE`` and ``guide_ROLE``: what the references make of the items, without gradient; of mined ones,
        where the batch has their features."""
        views: Views = {}
        # In full precision: a teacher's temperature magnifies what its features were rounded to.
        with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
            for name, reference in self.references.items():
                for role, modality in self.inputs.items():
                    if modality != "number":
                        features = batch.inputs[f"{name}_{role}"]
                        views[f"{name}_{role}"] = reference.embedder(modality)(**features)
                if self.minable and (mined := batch.extra.get(f"{name}_{MINED}")):
                    views[f"{name}_{MINED}"] = reference.embedder(self.inputs[self.minable[1]])(**mined)
        return views

    def global_views(self, views: Views) -> Views:
        """What ``loss`` sees of this process's views: by default those of all processes.

        A method whose loss goes ``across`` processes by itself keeps its own. Either way it returns the loss of the
        global batch, and to parameters and own embeddings a gradient whose mean over the processes is the right one.
        """
        return distributed.gather_views(views)

    @abstractmethod
    def loss(self, views: Views) -> Loss:
        """The loss of the global batch, from ``global_views``."""

    def metrics(self, views: Views) -> dict[str, float]:
        """Numbers worth a line in the log, computed without gradient at logged steps only; none by default."""
        return {}

    def learned_scale(self) -> tuple[float | None, float | None]:
        """The scale ln(1/τ) and the bias that belong to the embeddings, for the encoder to keep; none by default."""
        return None, None

    def after_step(self) -> None:
        """What changes after an optimizer step besides the weights (momentum copies, queues); nothing by default."""

    def forget_step(self) -> None:
        """A step ends before ``after_step``: what was noted for that is given up; nothing by default."""

    def forward(self, batch: Batch) -> Views:
        """``embed`` under the name by which data parallelism wraps a module."""
        return self.embed(batch)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # Underlies `.to(device)`: the references are no parts of this module, but go where it goes.
        for reference in self.references.values():
            reference._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)


def roles_named(config: schema.Config) -> dict[str, str]:
    """Every role that the config names a column of, in its order, and the setting that does so."""
    sources = [config.data.train, *config.data.mix]
    where = ["data.train.columns", *(f"data.mix.{number}.columns" for number in range(len(config.data.mix)))]
    named = dict.fromkeys(config.data.columns, "data.columns")
    for source, setting in zip(sources, where, strict=True):
        for role in source.columns:
            named.setdefault(role, setting)
    return named


def refuse_unknown_roles(config: schema.Config, known: Mapping[str, str]) -> None:
    """Raise ``MmclError`` if the config names columns of other roles than the ``known``."""
    for role, setting in roles_named(config).items():
        if role not in known:
            hint = nearest(role, known)
            raise MmclError(f"{setting}.{role}: method '{config.method.name}' has no such role; {hint}")
