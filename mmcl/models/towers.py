"""Towers that embed into one space, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head, Prototypes
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.runtime.errors import MmclError

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Conventions:
    """How a model's vectors are meant to be taken, whatever computes them; by default as of all that is made here.

    Attributes:
        normalize: whether a normalisation is one of the model's own modules. The vectors of sentence-transformers are
            of unit length by this alone; :meth:`mmcl.Encoder.encode` has its own switch.
        similarity: what the vectors are compared by: ``cosine``, ``dot``, …
        truncate_dim: how many leading dimensions of the vectors are used; None for all.
        text_tower: name of the tower of texts for which none is named, where there are several; None where one has to
            be.

    Raises:
        ValueError: ``truncate_dim`` is no number from 1 up.
    """

    normalize: bool = True
    similarity: str = "cosine"
    truncate_dim: int | None = None
    text_tower: str | None = None

    def __post_init__(self) -> None:
        if self.truncate_dim is not None and (type(self.truncate_dim) is not int or self.truncate_dim < 1):
            raise ValueError(f"truncate_dim is {self.truncate_dim!r}, and no number from 1 up")


class Towers(nn.Module):
    """Embedders by name, with what describes the model that they are.

    A tower is called ``image`` or ``text`` by its modality where it is the only one of that, or anything else:
    ``question`` and ``answer`` may be two towers of texts.

    Args:
        embedders: by name.
        dim: D of the embeddings.
        name: see below.

    Attributes:
        width: D, all of which are trained.
        conventions: how the vectors are meant to be taken.
        name: what the model is called in tables and manifests.
        path: the folder or file that it was loaded from, or the folder that it was last saved to; None without.
        card: what the model card says beside the architecture: data, settings, scores.
        logit_scale: ln(1/τ) of the temperature τ it was trained with; None if unknown.
        logit_bias: the bias of its sigmoid loss; None without one.
        heads: what stood between the embeddings and the loss in training, by name: ``projector``, ``predictor``, … They
            are no submodules: neither among the parameters nor in the state.

    Raises:
        MmclError: the name of a tower has other characters than letters, digits, ``_`` and ``-``, or is one of torch's,
            such as ``items``.
    """

    def __init__(self, embedders: Mapping[str, Embedder], dim: int, name: str = "encoder") -> None:
        super().__init__()
        if wrong := [each for each in embedders if not _NAME.fullmatch(each)]:
            raise MmclError(f"tower '{wrong[0]}': name it by letters, digits, _ and - alone")
        if taken := [each for each in embedders if hasattr(nn.ModuleDict(), each)]:  # an attribute of every module
            raise MmclError(f"tower '{taken[0]}': torch needs this name itself; take another, such as {taken[0]}_tower")
        self.embedders = nn.ModuleDict(embedders)
        self.width = dim
        self.conventions = Conventions()
        self.name = name
        self.path: Path | None = None
        self.card: dict[str, Any] = {}
        self.logit_scale: float | None = None
        self.logit_bias: float | None = None
        self.heads: Mapping[str, Head | Prototypes] = {}

    @property
    def dim(self) -> int:
        """Dimensions of the vectors as they are meant to be used: ``width``, unless the model is meant to be cut."""
        return min(self.width, self.conventions.truncate_dim or self.width)

    @property
    def names(self) -> list[str]:
        """Of the towers, sorted."""
        return sorted(self.embedders)

    @property
    def modalities(self) -> set[str]:
        """What the towers embed: ``image``, ``text``, ``table``."""
        return {self.modality(name) for name in self.embedders}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the square input of the image tower; None without one."""
        return self.image().processor.size if "image" in self.modalities else None

    def modality(self, name: str) -> str:
        """What the tower called ``name`` embeds."""
        return self.embedder(name).modality

    def of_modality(self, modality: str) -> list[str]:
        """Names of the towers of a modality, sorted."""
        return [name for name in self.names if self.modality(name) == modality]

    def resolve(self, name: str) -> str:
        """The tower called ``name``, or the only one of the modality ``name``.

        Raises:
            MmclError: there is none, or several are of that modality.
        """
        if name in self.embedders:
            return name
        found = self.of_modality(name)
        if len(found) == 1:
            return found[0]
        if name == "text" and (usual := self.conventions.text_tower) in found:
            return str(usual)
        if found:
            raise MmclError(
                f"model '{self.name}' has several {name} towers; name one: {' or '.join(found)} (modality=, or --tower)"
            )
        known = " and ".join(sorted(self.modalities))
        towers = "" if self.modalities == {*self.names} else f" (towers {' and '.join(self.names)})"
        raise MmclError(f"model '{self.name}' embeds {known} only{towers}, and cannot take {name} input")

    def select(self, *names: str) -> Towers:
        """These towers alone, by name or modality, as a model of the same description that shares their weights.

        Raises:
            MmclError: as :meth:`resolve`.
        """
        found = [self.resolve(name) for name in names]
        part = Towers({name: self.embedder(name) for name in found}, self.width, self.name)
        for field in ("conventions", "path", "card", "logit_scale", "logit_bias", "heads"):
            setattr(part, field, getattr(self, field))
        part.training = self.training
        return part

    def embedder(self, name: str) -> Embedder:
        """The embedder called ``name``, or the only one of that modality.

        Raises:
            MmclError: as :meth:`resolve`.
        """
        return cast(Embedder, self.embedders[self.resolve(name)])

    def text(self, name: str = "text") -> TextEmbedder:
        """The embedder of texts called ``name``, or the only one of texts.

        Raises:
            MmclError: as :meth:`resolve`, or it embeds something else.
        """
        embedder = self.embedder(name)
        if not isinstance(embedder, TextEmbedder):
            raise self._other(name, embedder, "text")
        return embedder

    def image(self, name: str = "image") -> ImageEmbedder:
        """The embedder of images called ``name``, or the only one of images.

        Raises:
            MmclError: as :meth:`resolve`, or it embeds something else.
        """
        embedder = self.embedder(name)
        if not isinstance(embedder, ImageEmbedder):
            raise self._other(name, embedder, "image")
        return embedder

    def _other(self, name: str, embedder: Embedder, wanted: str) -> MmclError:
        return MmclError(f"the tower '{name}' of model '{self.name}' embeds {embedder.modality}s, not {wanted}s")
