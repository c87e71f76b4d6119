"""The contract between a method and everything else."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from mmcl.config import schema
from mmcl.config.data import AugmentationConfig
from mmcl.config.methods import MethodConfig
from mmcl.data.batches.batch import MINED, Batch, Inputs
from mmcl.data.batches.inputs import join_inputs
from mmcl.data.batches.reading import Reading
from mmcl.data.batches.views import VALUES, Augment, Extra, View, make_views
from mmcl.data.processors.text import TextProcessor
from mmcl.methods.outputs import Outputs, Rows
from mmcl.methods.parts.online_probe import OnlineProbe
from mmcl.methods.step import Step
from mmcl.models.heads import Head, Prototypes
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, nearest

REFERENCES = ("teacher", "guide")
log = logging.getLogger("mmcl")
AnyHead = TypeVar("AnyHead", Head, Prototypes)


@dataclass
class Loss:
    """A scalar to minimise, and the parts it is made of where a method has several."""

    value: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a method is made with beside its settings and its towers.

    Attributes:
        columns: role to modality (``image``, ``text``, ``label``, ``number``), as :meth:`Method.columns_of` gives them.
        batch_size: rows of the global batch.
        exchange: how a loss meets the rows of other processes, ``gather`` or ``ring``; None where there are none.
        mined: mined hard negatives of each row, if there are any.
        augmentation: random changes of training images; None where there are none.
        references: the models of ``config.teacher`` and ``config.guide``, by those names. They are no parts of the
            method: not among its parameters, not in its state, and so never trained nor saved.
    """

    columns: Mapping[str, str]
    batch_size: int
    exchange: Literal["gather", "ring"] | None = None
    mined: int = 0
    augmentation: AugmentationConfig | None = None
    references: Mapping[str, Towers] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """How rows become views, views become embeddings, and embeddings become a loss.

    A subclass has its settings as ``Config``, names its columns and views, passes views through towers in ``embed``
    and scores their embeddings in ``loss``. ``loss`` gets the embeddings of the *global* batch, never a model input,
    and changes nothing: so gradient caching and the exchange between processes are written once, outside, for every
    method. State beside the weights changes in ``after_update``.

    Args:
        config: of the method.
        encoder: the towers to train.
        context: see :class:`Context`.

    Attributes:
        heads: what stands between the embeddings and the loss, by name, see :meth:`add_head`.
        probe: a classifier that learns beside, if the run has one.
    """

    Config: ClassVar[type[MethodConfig]]
    """Its settings."""

    fractions: ClassVar[Mapping[str, str]] = {}
    """Those of :meth:`metrics` that are fractions in [0, 1], by name, with the titles of their plots in a report."""

    def __init__(self, config: Any, encoder: Towers, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.context = context
        self.columns = dict(context.columns)
        self.heads = nn.ModuleDict()
        self.probe: OnlineProbe | None = None
        self.references = dict(context.references)  # a plain dict: nn.Module does not look into it
        for reference in self.references.values():
            reference.eval().requires_grad_(False)
        configured = {name for name in REFERENCES if getattr(config, name, None) is not None}
        if configured != set(self.references):
            raise ValueError(f"the config names {sorted(configured)}, but the models given are {list(self.references)}")
        if context.mined and self.mining_roles is None:
            raise MmclError(
                "data.mining: hard negatives are mined for clip and for simcse on pairs (anchor and positive), "
                "and not for what this config trains; leave it out"
            )
        if context.exchange == "ring" and not self.rings:
            raise MmclError(
                f"training.exchange: method '{config.name}' needs the whole batch on every process; set it to gather"
            )

    def add_head(self, name: str, make: Callable[[], AnyHead]) -> AnyHead:
        """A head for training only, which is kept beside the encoder in the model folder.

        Args:
            name: of the head: ``projector``, ``predictor``, ``prototypes``, …
            make: a new one. Where the model to start from has a head of that name and of the same architecture, it is
                that one, with its weights.

        Raises:
            MmclError: what is made is no head, which a model folder could not describe.
        """

        def made() -> AnyHead:
            head = make()
            if not isinstance(head, (Head, Prototypes)):
                raise MmclError(
                    f"{type(self).__name__}.add_head: '{name}' is of type {type(head).__name__}, not Head; make it by "
                    "mlp_head or Head.from_layers"
                )
            return head

        kept = self.encoder.heads.get(name)
        if kept is not None:
            with torch.device("meta"):  # draws no random numbers
                wanted = made().architecture()
            if kept.architecture() != wanted:
                log.warning(
                    "%s: the %s of the model to start from is %s, and the one to train %s, with new weights",
                    self.encoder.name, name, kept.architecture(), wanted,
                )  # fmt: skip
                kept = None
        head = made() if kept is None else cast(AnyHead, kept)
        self.heads[name] = head
        return head

    @classmethod
    @abstractmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        """Role to modality of the columns that ``config`` makes the method read.

        Raises:
            MmclError: the config names columns of a role that the method has not.
        """

    @classmethod
    def towers_of(cls, config: schema.Config) -> dict[str, list[str]]:
        """Name of each tower that the method needs to the columns that pass through it; by default a tower for each
        modality of the columns.

        Raises:
            MmclError: the config names other towers.
        """
        if config.model.towers:
            name = next(iter(config.model.towers))
            raise MmclError(
                f"model.towers.{name}: method '{config.method.name}' has no towers of other names; set model.image or "
                "model.text"
            )
        towers: dict[str, list[str]] = {}
        for column, modality in cls.columns_of(config).items():
            if modality not in VALUES:
                towers.setdefault(modality, []).append(column)
        return towers

    @abstractmethod
    def views(self) -> Mapping[str, View]:
        """What passes through the towers, by names that ``embed`` knows."""

    @abstractmethod
    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """Name to embeddings of the views and the extra items; this is where gradient flows."""

    def embed_keys(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """The same by a momentum copy, in training; called without gradient."""
        return {}

    def project(self, outputs: Outputs) -> Outputs:
        """The outputs of the global batch through what stands between the towers and the loss in training only."""
        return outputs

    @abstractmethod
    def loss(self, outputs: Outputs, step: Step) -> Loss:
        """The loss of the global batch: a function of projected outputs and parameters, which changes nothing."""

    def metrics(self, outputs: Outputs) -> dict[str, float]:
        """Numbers worth a line in the log, computed without gradient at logged steps only; none by default."""
        return {}

    def before_update(self, step: Step) -> None:
        """Called when all gradients are there, before they are clipped; nothing by default."""

    def after_update(self, outputs: Outputs, step: Step) -> None:
        """Change what changes after an optimizer step besides the weights: momentum copies, queues.

        Args:
            outputs: projected, of the batches of the step, without gradient.
            step: the step.
        """

    @property
    def probe_view(self) -> str:
        """The view whose embeddings, as the encoder gives them, a probe learns labels from; by default the first."""
        return next(iter(self.views()))

    @property
    def extra(self) -> Mapping[str, Extra]:
        """Extra items wanted beside every global batch, by name; none by default."""
        return {}

    @property
    def optional(self) -> frozenset[str]:
        """Columns of texts that a row may lack, which is used all the same: its identity is ``NOTHING`` there, and
        whatever stands in for the item is to be left out; none by default."""
        return frozenset()

    @property
    def counted(self) -> str | None:
        """The column of whose items the identities in all training rows are wanted before the first step; none by
        default."""
        return None

    def count(self, identities: Tensor) -> None:
        """Take in the identities of the items of the column :attr:`counted`.

        Args:
            identities: (R,) int64, of every usable row.
        """

    @property
    def separate(self) -> tuple[str, ...]:
        """Views whose texts pass through their tower by themselves; all others pass together."""
        return ()

    @property
    def mining_roles(self) -> tuple[str, str] | None:
        """Two columns: hard negatives of the first can be mined among the items of the second, and are taken from the
        extra items called ``MINED``; None where the method has no use for them."""
        return None

    @property
    def negatives_per_query(self) -> int | None:
        """Negatives of each query in a global batch, without extra items; None where there are no such."""
        return None

    @property
    def stored_negatives(self) -> int:
        """Keys of former batches, at most, with which each query is compared besides."""
        return 0

    def compared_with(self, extra: int = 0) -> str:
        """What each query of a global batch is compared with, in words, such as ``127 negatives per query``.

        Args:
            extra: extra items beside every batch.
        """
        if self.negatives_per_query is None:
            return "no negatives"
        how = {None: "", "gather": " gathered from all processes", "ring": " passed around the processes"}
        stored = f" and up to {self.stored_negatives:,} queued ones" if self.stored_negatives else ""
        return f"{self.negatives_per_query + extra:,} negatives per query{how[self.context.exchange]}{stored}"

    @property
    def rings(self) -> bool:
        """Whether the loss goes across processes by itself, each passing its own rows, as ``context.exchange`` says."""
        return False

    @property
    def across(self) -> Literal["gather", "ring"] | None:
        """How the loss goes across processes by itself; None where it gets the outputs of all."""
        return self.context.exchange if self.rings else None

    def learned_scale(self) -> tuple[float | None, float | None]:
        """The scale ln(1/τ) and the bias that belong to the embeddings, for the encoder to keep; none by default."""
        return None, None

    def card(self) -> dict[str, Any]:
        """What the model card says of the method besides its name, in values that JSON can hold; nothing by default."""
        return {}

    def require_steps(self, steps: int) -> None:
        """Raise ``MmclError`` if a run of so many steps is too short for the method; called before the first."""

    @property
    def augment(self) -> Augment | None:
        """The random changes of training images that the config describes."""
        return None if self.context.augmentation is None else Augment(self.context.augmentation)

    def augment_of(self, column: str) -> Augment | None:
        """The same for a column, independent of those of a row's other columns of images; None of what is no image."""
        images = [role for role, modality in self.columns.items() if modality == "image"]
        augment = self.augment
        return None if augment is None or column not in images else replace(augment, stream=images.index(column))

    @property
    def reading(self) -> Reading:
        """What is read of every row."""
        return Reading(self.columns, self.encoder, self.optional, self.views(), self.extra, self.references)

    def forward(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """``embed`` under the name by which data parallelism wraps a module."""
        return self.embed(inputs)

    def view_inputs(self, batch: Batch) -> dict[str, Inputs]:
        """The inputs of all views of a batch, in training changed at random."""
        return make_views(
            self.views(), batch, change=self.training, side=lambda tower: self.encoder.image(tower).processor.size
        )

    def outputs(self, batch: Batch, embed: Callable[..., dict[str, Tensor]] | None = None) -> Outputs:
        """What the loss needs of a batch.

        Args:
            batch: on the device of the method.
            embed: ``self``, perhaps wrapped for data parallelism.
        """
        inputs = self.view_inputs(batch)
        embeddings = (embed or self)(inputs)
        with torch.no_grad():
            keys = self.embed_keys(inputs)
        return Outputs(embeddings, self._rows(batch), keys)

    def _rows(self, batch: Batch) -> Rows:
        values, labels = (
            {column: inputs[name] for column, inputs in batch.inputs.items() if name in inputs}
            for name in ("values", "labels")
        )
        # In full precision: a teacher's temperature magnifies what its features were rounded to.
        with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
            references = {
                model: {
                    name: self.references[model].embedder(self._modality(name))(**inputs)
                    for name, inputs in named.items()
                }
                for model, named in batch.references.items()
                if model in self.references
            }
        return Rows(batch.ids, dict(batch.extra_ids), values, labels, references)

    def _modality(self, name: str) -> str:
        """Of a column, or of mined negatives."""
        return self.columns[self.mining_roles[1] if name == MINED and self.mining_roles else name]

    def embed_together(
        self, embed: Callable[..., Tensor], items: Mapping[str, Inputs], tower: str = "text"
    ) -> dict[str, Tensor]:
        """The items of several views, or of none, in one pass of what embeds them.

        In shards a tower meets those of other processes in every pass, and waits for a process that has fewer: a view
        that is there in some micro-batches only must have no pass of its own.
        """
        if len(items) < 2:
            return {name: embed(**inputs) for name, inputs in items.items()}
        processor = self.encoder.embedder(tower).processor
        padding = processor.padding_id if isinstance(processor, TextProcessor) else 0
        counts = [len(next(iter(inputs.values()))) for inputs in items.values()]
        vectors = embed(**join_inputs(list(items.values()), padding)).split(counts)
        return dict(zip(items, vectors, strict=True))

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
