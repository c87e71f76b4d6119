"""The encoder: one embedder a modality, and ``encode`` from raw inputs to vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmcl.data.images import decode_many
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.image_tower import ImageTower
from mmcl.models.text_tower import TextTower
from mmcl.runtime.errors import MmclError
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")

IMAGES_A_BATCH = 64
TOKENS_A_BATCH = 8192
TEXTS_TOKENIZED_AT_ONCE = 16_384


class Encoder(nn.Module):
    """Embeds texts, images, or both, into one space.

    Attributes:
        dim: dimension D of the embeddings.
        modalities: ``image``, ``text`` or both.
        name: what the model is called in tables and manifests.
        path: the folder or file it was loaded from, or the folder it was last saved to, if any.
        card: what the model card says beside the architecture: data, settings, scores.
        logit_scale: ln(1/τ) of the temperature τ it was trained with; None if unknown.
        logit_bias: the bias of its sigmoid loss; None without one.
        training_head: what stood between the embeddings and the loss in training only, as SimCSE's MLP; None without.
            It is no module of the encoder: it neither runs in ``encode`` nor is among the parameters or in the state.
    """

    def __init__(self, embedders: dict[str, Embedder], dim: int, name: str = "encoder") -> None:
        super().__init__()
        self.embedders = nn.ModuleDict(embedders)
        self.dim = dim
        self.name = name
        self.path: Path | None = None
        self.card: dict[str, Any] = {}
        self.logit_scale: float | None = None
        self.logit_bias: float | None = None
        self.training_head: Head | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training_head":  # a module's attribute that is a module would become a part of it
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def modalities(self) -> set[str]:
        """What it embeds: image, text or both."""
        return set(self.embedders)

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the square that pictures are resized to; None without an image tower."""
        return cast(ImageTower, self.embedder("image").tower).size if "image" in self.embedders else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def embedder(self, modality: str) -> Embedder:
        """The embedder of ``modality``.

        Raises:
            MmclError: this encoder has none.
        """
        if modality not in self.embedders:
            has = " and ".join(sorted(self.modalities))
            raise MmclError(f"model '{self.name}' embeds {has} only, and cannot take {modality} input")
        return cast(Embedder, self.embedders[modality])

    def encode(
        self,
        inputs: Any,
        modality: str | None = None,
        batch_size: int | str = "auto",
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        prompt: str | None = None,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        """Embed one input or a list of them.

        Args:
            inputs: a str is text; a ``pathlib.Path``, PIL image, uint8 (H, W, 3) array or encoded bytes is an image;
                or a list of these, mixed if both modalities are there.
            modality: ``text`` or ``image`` for all inputs, so that a str can name a picture's file; by type if absent.
            batch_size: inputs a forward pass; ``auto`` fills text batches up to a number of tokens.
            normalize: give every vector unit length.
            precision: ``float32`` or ``float16``, of the result.
            truncate_dim: keep the first so many dimensions (before normalising).
            prompt: name of one of the model's prompts, put before every text.
            show_progress: a bar on stderr; shown for a terminal if absent.

        Returns:
            (N, D) in the order of the inputs; (D,) for a single input; (0, D) for an empty list.

        Raises:
            MmclError: an input is of no known kind, a picture cannot be read, or the model lacks the modality.
        """
        if precision not in ("float32", "float16"):
            raise MmclError(f"encode: precision '{precision}' is not known; use float32 or float16")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.dim:
            raise MmclError(f"encode: truncate_dim {truncate_dim} must be between 1 and the model's {self.dim}")
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise MmclError(f"encode: batch_size is {batch_size!r}; give 'auto' or a number from 1 up")
        single = isinstance(inputs, (str, bytes, Path, Image.Image)) or (
            isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim in (2, 3)
        )
        if not single and not isinstance(inputs, Iterable):
            raise MmclError(f"encode: got a {type(inputs).__name__}; give a text, an image or a list of them")
        items = [inputs] if single else list(inputs)
        kinds = [_modality_of(item, position, modality) for position, item in enumerate(items)]
        out = np.zeros((len(items), truncate_dim or self.dim), dtype=precision)
        training = self.training
        self.eval()
        try:
            with progress("encode", len(items), "inputs", show_progress if len(items) > 256 else False) as advance:
                for kind in dict.fromkeys(kinds):
                    places = np.array([place for place, other in enumerate(kinds) if other == kind])
                    for where, batch in self._batches([items[place] for place in places], kind, batch_size, prompt):
                        vectors = self._forward(self.embedder(kind), batch, normalize, truncate_dim)
                        copies = [len(equal) for equal in where]
                        out[places[np.concatenate(where)]] = np.repeat(vectors, copies, axis=0)
                        advance(sum(copies))
        finally:
            self.train(training)
        return out[0] if single else out

    def _batches(
        self, items: Sequence[Any], kind: str, batch_size: int | str, prompt: str | None
    ) -> Iterator[tuple[list[list[int]], dict[str, Tensor]]]:
        """Inputs of one forward pass after the other, and the positions in ``items`` that each of their rows is for."""
        if kind == "image":
            return self._image_batches(items, batch_size)
        return self._text_batches(items, batch_size, prompt)

    @torch.inference_mode()
    def _forward(
        self, embedder: Embedder, batch: dict[str, Tensor], normalize: bool, truncate_dim: int | None
    ) -> np.ndarray:
        vectors = embedder(**{key: value.to(self.device) for key, value in batch.items()}).float()[:, :truncate_dim]
        return (F.normalize(vectors, dim=1) if normalize else vectors).cpu().numpy()

    def _image_batches(
        self, images: Sequence[Any], batch_size: int | str
    ) -> Iterator[tuple[list[list[int]], dict[str, Tensor]]]:
        tower = cast(ImageTower, self.embedder("image").tower)
        step = IMAGES_A_BATCH if batch_size == "auto" else int(batch_size)
        for start in range(0, len(images), step):
            chunk = [_as_picture(image) for image in images[start : start + step]]
            pixels, errors = decode_many(chunk, tower.size, tower.resize)
            if errors:
                position, reason = next(iter(errors.items()))
                what = images[start + position]
                shown = what if isinstance(what, (str, Path)) else f"input {start + position}"
                raise MmclError(f"{shown}: not a readable image ({reason})")
            yield [[start + offset] for offset in range(len(chunk))], {"pixels": torch.from_numpy(pixels)}

    def _text_batches(
        self, texts: Sequence[str], batch_size: int | str, prompt: str | None
    ) -> Iterator[tuple[list[list[int]], dict[str, Tensor]]]:
        """Each distinct text once, in batches of similar length, so that little is spent on padding."""
        tower = cast(TextTower, self.embedder("text").tower)
        places: dict[str, list[int]] = {}
        for position, text in enumerate(texts):
            places.setdefault(text, []).append(position)
        distinct, cut = list(places), 0
        for begin in range(0, len(distinct), TEXTS_TOKENIZED_AT_ONCE):
            chunk = distinct[begin : begin + TEXTS_TOKENIZED_AT_ONCE]
            tokens, longer = tower.tokenize(chunk, prompt)
            cut += longer
            order = sorted(range(len(chunk)), key=lambda i: len(tokens[i]), reverse=True)
            start = 0
            while start < len(order):
                longest = max(1, len(tokens[order[start]]))
                step = max(1, TOKENS_A_BATCH // longest) if batch_size == "auto" else int(batch_size)
                taken = order[start : start + step]
                yield [places[chunk[i]] for i in taken], tower.collate([tokens[i] for i in taken])
                start += step
        if cut:
            log.warning("%d of %d texts were cut at %d tokens", cut, len(distinct), tower.max_tokens)

    def save(self, folder: str | Path) -> Path:
        """Write a model folder that :func:`mmcl.load` opens; an old one there is replaced whole.

        A text-only model's folder is also a sentence-transformers folder.

        Raises:
            MmclError: ``folder`` holds something other than a model.
            OSError: the disk is full or refuses.
        """
        from mmcl.models.folder import save

        return save(self, Path(folder))


def _modality_of(item: Any, position: int, wanted: str | None) -> str:
    if wanted not in (None, "image", "text"):
        raise MmclError(f"encode: modality '{wanted}' is not known; use image or text")
    if isinstance(item, str):
        return wanted or "text"
    if isinstance(item, (bytes, Path, Image.Image, np.ndarray)) and wanted != "text":
        return "image"
    kind = type(item).__name__
    raise MmclError(f"encode: input {position} is a {kind}; text is a str, an image a Path, PIL image, array or bytes")


def _as_picture(item: Any) -> Any:
    return Path(item) if isinstance(item, str) else item
