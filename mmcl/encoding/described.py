"""What an encoder says of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import nn

from mmcl.data.images import ImageInput, PreparedImage
from mmcl.data.processors.image import ImageProcessor
from mmcl.encoding.fingerprint import fingerprint
from mmcl.formats.weights import weights_hash
from mmcl.models.embedder import Embedder
from mmcl.models.towers import Conventions, Towers

T = TypeVar("T")


class _OfTowers(Generic[T]):
    """An attribute of a model that is one of its towers."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, model: Described, owner: type) -> T:
        return cast(T, getattr(model.towers, self._name))

    def __set__(self, model: Described, value: T) -> None:
        setattr(model.towers, self._name, value)


class Described(nn.Module):
    """A model by its towers, and what is known of it.

    Args:
        towers: of the model.

    Attributes:
        towers: the networks, and what describes the model.
    """

    name = _OfTowers[str]()
    """What the model is called in tables and manifests."""
    path = _OfTowers[Path | None]()
    """The folder or file that the model was loaded from or last saved to, if any."""
    dim = _OfTowers[int]()
    """Dimension D of what :meth:`encode` gives by default: ``width``, unless the model is meant to be cut."""
    width = _OfTowers[int]()
    """Dimension of the embeddings, all of which are trained."""
    conventions = _OfTowers[Conventions]()
    """How the vectors are meant to be taken, as the folder says that the model came from."""
    modalities = _OfTowers[set[str]]()
    """What it embeds: ``image``, ``text``, ``table``."""
    image_size = _OfTowers[int | None]()
    """Side in pixels of the square that images are resized to; None without an image tower."""
    device = _OfTowers[torch.device]()
    """Where the weights are."""
    card = _OfTowers[dict[str, Any]]()
    """What the model card says beside the architecture: data, settings, scores."""
    logit_scale = _OfTowers[float | None]()
    """ln(1/τ) of the temperature τ that the model was trained with; None if unknown."""
    logit_bias = _OfTowers[float | None]()
    """The bias of the sigmoid loss that the model was trained with; None without one."""

    _kept_hashes: Mapping[tuple[str, ...], str] = {}  # of the weights of some towers, by their names

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        self.training = towers.training

    def __repr__(self) -> str:
        """One line; ``print(encoder.towers)`` shows every layer."""
        nets = ", ".join(f"{name} by {type(self.embedder(name).tower.net).__name__}" for name in self.towers.names)
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return f"{type(self).__name__}({self.name!r}: {nets}; {self.dim} dimensions, {parameters:,} parameters)"

    @property
    def exact_decoding(self) -> bool:
        """Whether images are decoded exactly. By default JPEG files much larger than the model's input are decoded at
        a half, a quarter or an eighth of their size, which is faster, and moves vectors by up to 8e-3."""
        return any(processor.exact_decoding for processor in self._image_processors())

    @exact_decoding.setter
    def exact_decoding(self, exact: bool) -> None:
        for processor in self._image_processors():
            processor.exact_decoding = exact

    @property
    def fast_resize(self) -> bool:
        """Whether images are resized by torch, where the CPU has instructions for that: about four times as fast as by
        Pillow, and a few levels of a hundred off by one or two of 255. Off unless it is set."""
        return any(processor.fast_resize for processor in self._image_processors())

    @fast_resize.setter
    def fast_resize(self, fast: bool) -> None:
        for processor in self._image_processors():
            processor.fast_resize = fast

    def _image_processors(self) -> list[ImageProcessor]:
        return [self.towers.image(name).processor for name in self.towers.of_modality("image")]

    def embedder(self, name: str) -> Embedder:
        """The embedder called ``name``, or the only one of that modality: processor, tower and head.

        Raises:
            MmclError: there is none, or several are of that modality.
        """
        return self.towers.embedder(name)

    def prepare_image(self, image: ImageInput | None) -> PreparedImage:
        """An image decoded and resized as :meth:`mmcl.Encoder.encode` does, which takes the result in its place.

        For threads that read ahead: what is kept is as small as the model's input, whatever the image's size.

        Raises:
            ImageError: it cannot be read.
            MmclError: this encoder embeds no images.
        """
        return self.towers.image().processor.prepare(image)

    def fingerprint(self) -> dict[str, str]:
        """What identifies this encoder: ``weights``, a hash of the weights and of what else decides the vectors, and
        ``prompt``, the text before every other. It takes as long as reading them does."""
        return fingerprint(self.towers, self._kept_hashes.get(tuple(self.towers.names)))

    def keep_weights_hash(self) -> None:
        """Take the weights of now for the :meth:`fingerprint` from here on, of this encoder and of those by some of its
        towers, whatever becomes of them in memory."""
        names = self.towers.names
        parts = (part for count in range(1, len(names) + 1) for part in combinations(names, count))
        self._kept_hashes = {part: weights_hash(self.towers.select(*part).embedders) for part in parts}

    @property
    def prompts(self) -> dict[str, str]:
        """Name to the text that is put before another, of the text tower; empty without one, or with several."""
        names = self.towers.of_modality("text")
        return dict(self.towers.text(names[0]).processor.prompts) if len(names) == 1 else {}

    def prompt_text(self, prompt: str | None = None, modality: str = "text") -> str:
        """What :meth:`mmcl.Encoder.encode` puts before every text.

        Args:
            prompt: as for :meth:`mmcl.Encoder.encode`.
            modality: the name of the tower, where several embed texts.

        Raises:
            MmclError: this encoder embeds no text, or has no prompt of that name.
        """
        return self.towers.text(modality).processor.prompt_text(prompt)

    def text_identities(self, texts: Sequence[str], prompt: str | None = None, modality: str = "text") -> np.ndarray:
        """(N,) int64, equal for texts whose vectors behind ``prompt`` are the same, since their tokens are: ``paris``
        and ``Paris ``, for a model that lower-cases.

        Raises:
            MmclError: as :meth:`prompt_text`, or something is no text.
        """
        return self.towers.text(modality).processor.identities(texts, prompt)
