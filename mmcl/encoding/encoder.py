"""The encoder: one embedder a modality, and ``encode`` from raw inputs to vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.data.images import ImageInput, PreparedImage
from mmcl.encoding.fingerprint import fingerprint
from mmcl.encoding.inputs import (
    Options,
    check_collection,
    first_of_equals,
    hint_at_files,
    is_whole,
    listed,
    modality_of,
    read_pictures,
)
from mmcl.encoding.quantize import RANGED, check_precision, quantize
from mmcl.encoding.text_compute import TextCompute
from mmcl.encoding.text_pipeline import CHUNK, Embedded, chunked, embed_chunks, only_texts
from mmcl.encoding.workers import embed_in_workers
from mmcl.formats.sentence_transformers.read import Conventions
from mmcl.losses.unit import unit_length
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.tower import TextTower
from mmcl.runtime.device import DTYPES, Devices, pick_devices, ready_after_fork, resolve_precision
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")

IMAGES_A_BATCH = 64
FEW_INPUTS = 256
"""No bar is shown for so few, unless it is asked for."""


class Encoder(nn.Module):
    """Embeds texts, images, or both, into one space.

    Attributes:
        width: dimension of the embeddings, all of which are trained.
        conventions: how the vectors are meant to be taken, as the folder says that the model came from.
        modalities: ``image``, ``text`` or both.
        name: what the model is called in tables and manifests.
        path: the folder or file it was loaded from, or the folder it was last saved to, if any.
        card: what the model card says beside the architecture: data, settings, scores.
        logit_scale: ln(1/τ) of the temperature τ it was trained with; None if unknown.
        logit_bias: the bias of its sigmoid loss; None without one.
        training_head: what stood between the embeddings and the loss in training only, as SimCSE's MLP; None without.
            It is no module of the encoder: it neither runs in ``encode`` nor is among the parameters or in the state.
    """

    _compute = "auto"  # what encode computes in, see set_compute
    _text: TextCompute | None = None  # what encode prepared of the text tower's weights
    _fingerprint: dict[str, str] | None = None  # of a backend, which does not hold the weights

    def __init__(self, embedders: dict[str, Embedder], dim: int, name: str = "encoder") -> None:
        super().__init__()
        self.embedders = nn.ModuleDict(embedders)
        self.width = dim
        self.conventions = Conventions()
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

    def __repr__(self) -> str:
        """One line; ``print(encoder.embedders)`` tells every layer."""
        towers = ", ".join(
            f"{modality} by {type(cast(Embedder, embedder).tower.net).__name__}"
            for modality, embedder in sorted(self.embedders.items())
        )
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return f"Encoder({self.name!r}: {towers}; {self.dim} dimensions, {parameters:,} parameters)"

    @property
    def dim(self) -> int:
        """Dimension D of what :meth:`encode` gives by default: ``width``, unless the model is meant to be cut."""
        return min(self.width, self.conventions.truncate_dim or self.width)

    @property
    def modalities(self) -> set[str]:
        """What it embeds: image, text or both."""
        return set(self.embedders)

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the square that pictures are resized to; None without an image tower."""
        return None if self._image_tower is None else self._image_tower.size

    @property
    def exact_decoding(self) -> bool:
        """Whether images are decoded exactly. By default JPEG files much larger than the model's input are decoded at
        a half, a quarter or an eighth of their size, which is faster, and moves vectors by up to 8e-3."""
        return self._image_tower is not None and self._image_tower.exact_decoding

    @exact_decoding.setter
    def exact_decoding(self, exact: bool) -> None:
        if self._image_tower is not None:
            self._image_tower.exact_decoding = exact

    @property
    def _image_tower(self) -> ImageTower | None:
        return cast(ImageTower, self.embedder("image").tower) if "image" in self.embedders else None

    def prepare_image(self, image: ImageInput | None) -> PreparedImage:
        """An image decoded and resized as :meth:`encode` does, which takes the result in its place.

        For threads that read ahead: what is kept is as small as the model's input, whatever the image's size.

        Raises:
            ImageError: it cannot be read.
            MmclError: this encoder embeds no images.
        """
        return cast(ImageTower, self.embedder("image").tower).prepare(image)

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

    def fingerprint(self) -> dict[str, str]:
        """What tells this encoder from others, or from itself after training: ``weights``, a hash of the weights and of
        what else decides the vectors, and ``prompt``, the words before a text. It takes as long as reading them does.
        """
        return self._fingerprint or fingerprint(self)

    def prompt_words(self, prompt: str | None = None) -> str:
        """What :meth:`encode` puts before every text.

        Args:
            prompt: as for :meth:`encode`.

        Raises:
            MmclError: this encoder embeds no text, or has no prompt of that name.
        """
        return cast(TextTower, self.embedder("text").tower).words(prompt)

    def text_identities(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """(N,) int64, equal for texts whose vectors behind ``prompt`` are the same, since their tokens are: ``paris``
        and ``Paris ``, for a model that lower-cases.

        Raises:
            MmclError: as :meth:`prompt_words`, or something is no text.
        """
        return cast(TextTower, self.embedder("text").tower).identities(texts, prompt)

    @property
    def compute(self) -> str:
        """What :meth:`encode` computes in on the device where the weights are: ``float32`` or ``bfloat16``."""
        return resolve_precision(self._compute, self.device)

    def set_compute(self, dtype: str = "auto") -> None:
        """Have :meth:`encode` compute in another precision than ``auto`` from now on; the weights stay as they are.

        Text towers get a copy of their weights, cast once and cast anew after these have changed; image towers run
        under autocast. Softmax, normalisation and pooling are computed in float32.

        Args:
            dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device multiplies it natively.

        Raises:
            MmclError: it is none of these.
        """
        known = ("auto", "bfloat16", "float32")
        if dtype not in known:
            raise MmclError(f"encode cannot compute in '{dtype}'; {nearest(dtype, known)}")
        self._compute = dtype

    @property
    def computes_in(self) -> str:
        """The precision that :meth:`encode` computes in here: ``float32`` or ``bfloat16``."""
        return resolve_precision(self._compute, self.device)

    def train(self, mode: bool = True) -> Encoder:
        """As of every module; what :meth:`encode` had prepared of the weights is dropped, since they will change."""
        if mode:
            self._text = None
        return super().train(mode)

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
        *,
        return_truncated: bool = False,
        devices: Devices | None = None,
        calibration: Any = None,
        on_error: str = "raise",
    ) -> Any:
        """Embed one input or a list of them.

        Texts that are equal are computed once. A text's vector does not depend on the others: within 1e-5 in float32.
        In bfloat16 (see :meth:`set_compute`) it moved by up to 1.7e-3, since matrix products of other shapes add up in
        another order, and their sums are then rounded to 8 bits.

        Args:
            inputs: a str is text; a ``pathlib.Path``, PIL image, uint8 (H, W, 3) array, encoded bytes or file opened as
                bytes is an image; or a list, column or generator of these, mixed if both modalities are there. A text
                without words is one like any other.
            modality: ``text`` or ``image`` for all inputs, so that a str can name a picture's file; by type if absent.
            batch_size: inputs a forward pass; ``auto`` fills text batches up to a number of tokens.
            normalize: give every vector unit length.
            precision: ``float32``, ``float16``, ``int8``, ``uint8``, ``binary`` or ``ubinary``, of the result; see
                :func:`mmcl.encoding.quantize.quantize`.
            truncate_dim: keep the first so many dimensions (before normalising); ``dim`` of them if absent.
            prompt: name of one of the model's prompts, put before every text; the default one if absent; "" for none.
            show_progress: a bar on stderr; if absent, shown for more than a few inputs on a terminal.
            return_truncated: give as well which inputs were texts longer than the model reads.
            devices: compute in other processes, each with a copy of the model: a device (``cuda:0``), a list of them
                (``["cpu", "cpu"]``), or a number of processes on the CPU, which share its threads.
            calibration: for ``int8`` and ``uint8``: (M, D) vectors, or inputs to encode, that give each dimension's
                range; the encoded vectors themselves if absent.
            on_error: ``raise`` for the first image that cannot be read, or ``skip`` all such of a list.

        Returns:
            (N, D) in the order of the inputs; (D,) for a single input; (0, D) for an empty list. With
            ``return_truncated`` a pair of this and (N,) bool, or one bool. With ``on_error="skip"``, one more: a
            mapping from the position of each input that was left out to the reason; N counts the others.

        Raises:
            MmclError: an input is of no known kind, a picture cannot be read, the model lacks the modality, it gave a
                vector with NaN or infinity in it, or a worker process ended; or this process was forked, and the model
                is on a GPU.
        """
        options = self._options(batch_size, normalize, truncate_dim, prompt, precision)
        if on_error not in ("raise", "skip"):
            raise MmclError(f"encode: on_error is {on_error!r}; use 'raise' or 'skip'")
        if calibration is not None and precision in RANGED:
            calibration = self._calibration(calibration, options, modality)
        items, single = listed(inputs)
        kinds = self._kinds(items, modality, prompt)
        if on_error == "skip" and not single:
            if devices is not None:
                raise MmclError("encode: on_error='skip' does not go with devices=; leave one of them out")
            options = options._replace(skip=True)
        if modality is None:
            hint_at_files(item for item in items if type(item) is str)
        out = np.zeros((len(items), options.dim), "float16" if precision == "float16" else "float32")
        cut = np.zeros(len(items), dtype=bool)
        skipped: dict[int, str] = {}
        first, repeated, originals = first_of_equals(items)
        shown = False if show_progress is None and len(items) <= FEW_INPUTS else show_progress
        # What float16 cannot hold, quantize tells.
        with progress("encode", len(first), "inputs", shown) as advance, np.errstate(over="ignore"):
            for places, part in self._embedded(items, kinds, first, options, self._elsewhere(devices), advance):
                out[places], cut[places] = part.vectors, part.cut
                skipped |= {int(places[position]): reason for position, reason in (part.errors or {}).items()}
        out[repeated], cut[repeated] = out[originals], cut[originals]
        pairs = zip(repeated.tolist(), originals.tolist(), strict=True)
        skipped |= {place: skipped[original] for place, original in pairs if original in skipped}
        self._report_cut(int(cut.sum()), kinds.count("text"))
        if skipped:
            place = min(skipped)
            log.warning(
                "%d of %d inputs left out; the first, input %d: %s", len(skipped), len(items), place, skipped[place]
            )
            kept = [place for place in range(len(items)) if place not in skipped]
            out, cut = out[kept], cut[kept]
        vectors = quantize(out, precision, calibration)
        given = [vectors[0] if single else vectors]
        if return_truncated:
            given.append(bool(cut[0]) if single else cut)
        if on_error == "skip":
            given.append(dict(sorted(skipped.items())))
        return given[0] if len(given) == 1 else tuple(given)

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        batch_size: int | str = "auto",
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        prompt: str | None = None,
        return_truncated: bool = False,
        devices: Devices | None = None,
        calibration: Any = None,
        chunk: int = CHUNK,
    ) -> Iterator[Any]:
        """Embed any number of texts in the memory of a few thousand.

        Args:
            texts: read one chunk ahead of the one computed. What its iterator raises comes after the vectors of the
                whole chunks before.
            batch_size: as for :meth:`encode`, as are the following.
            normalize: see there.
            precision: see there; ``int8`` and ``uint8`` need ``calibration``, since ranges have to hold for all chunks.
            truncate_dim: see there.
            prompt: see there.
            return_truncated: see there.
            devices: see there.
            calibration: see there.
            chunk: texts that are tokenized, sorted by length and given out together.

        Yields:
            (n, D) in the order of the texts, n = ``chunk`` but for the last; with ``return_truncated`` pairs of this
            and (n,) bool.

        Raises:
            MmclError: as :meth:`encode`; or an item is no text.
        """
        options = self._options(batch_size, normalize, truncate_dim, prompt, precision)
        self.embedder("text")
        if isinstance(texts, str) or getattr(texts, "ndim", 1) == 0:
            raise MmclError("encode_stream: got one text; give an iterable of them, or use encode")
        check_collection(texts, "encode_stream")
        if chunk < 1:
            raise MmclError(f"encode_stream: chunk is {chunk}; it must be 1 or more")
        if precision in RANGED:
            if calibration is None:
                raise MmclError(f"encode_stream: precision '{precision}' needs calibration= vectors or texts")
            calibration = self._calibration(calibration, options, "text")
        chunks = chunked(only_texts(texts), chunk)

        def given(part: Embedded) -> Any:
            vectors = quantize(part.vectors, precision, calibration)
            return (vectors, part.cut) if return_truncated else vectors

        return self._stream(chunks, options, self._elsewhere(devices), given)

    def _stream(
        self,
        chunks: Iterator[list[str]],
        options: Options,
        devices: list[torch.device],
        given: Callable[[Embedded], Any],
    ) -> Iterator[Any]:
        count = cut = 0
        try:
            with self._evaluating():
                parts = embed_in_workers(self, chunks, devices, options) if devices else self._texts(chunks, options)
                for part in parts:
                    count, cut = count + len(part.cut), cut + int(part.cut.sum())
                    yield given(part)
        finally:
            self._report_cut(cut, count)

    def _options(
        self, batch_size: int | str, normalize: bool, truncate_dim: int | None, prompt: str | None, precision: str
    ) -> Options:
        check_precision(precision)
        if truncate_dim is not None and not (is_whole(truncate_dim) and 1 <= truncate_dim <= self.width):
            raise MmclError(f"encode: truncate_dim {truncate_dim!r} must be between 1 and the model's {self.width}")
        if batch_size != "auto" and not (is_whole(batch_size) and int(batch_size) >= 1):
            raise MmclError(f"encode: batch_size is {batch_size!r}; give 'auto' or a number from 1 up")
        size = None if isinstance(batch_size, str) else batch_size
        return Options(size, normalize, truncate_dim or self.dim, prompt, self.compute)

    def _kinds(self, items: Sequence[Any], modality: str | None, prompt: str | None) -> list[str]:
        """The modality of each input, all of which this encoder has."""
        kinds = [modality_of(item, place, modality) for place, item in enumerate(items)]
        for kind in dict.fromkeys(kinds):
            self.embedder(kind)
        if prompt and set(kinds) == {"image"}:
            raise MmclError(f"encode: prompt '{prompt}' goes before texts, and all inputs are images; leave it out")
        return kinds

    def _calibration(self, calibration: Any, options: Options, modality: str | None) -> np.ndarray:
        if isinstance(calibration, np.ndarray) and calibration.dtype.kind == "f":
            return calibration
        vectors: np.ndarray = self.encode(
            calibration,
            modality=modality,
            normalize=options.normalize,
            truncate_dim=options.dim,
            prompt=options.prompt,
            show_progress=False,
        )
        return vectors

    def _elsewhere(self, devices: Devices | None) -> list[torch.device]:
        """The devices of worker processes; none where this process will do."""
        chosen = [] if devices is None else pick_devices(devices)
        return [] if chosen == [self.device] else chosen

    def _embedded(
        self,
        items: Sequence[Any],
        kinds: Sequence[str],
        wanted: Sequence[int],
        options: Options,
        devices: list[torch.device],
        advance: Callable[[int], object],
    ) -> Iterator[tuple[np.ndarray, Embedded]]:
        """Some of the ``wanted`` places in ``items`` after the other, with what is embedded of them."""
        with self._evaluating():
            for kind in dict.fromkeys(kinds):
                places = np.array([place for place in wanted if kinds[place] == kind])
                mine = [items[place] for place in places]
                parts: Iterable[Embedded]
                if devices:
                    size = max(1, min(CHUNK, -(-len(mine) // (4 * len(devices)))))
                    parts = embed_in_workers(self, chunked(mine, size), devices, options, kind)
                elif kind == "text":
                    parts = self._texts(chunked(mine, CHUNK), options, advance)
                else:
                    parts = self._images(mine, options)
                start = 0
                for part in parts:
                    end = start + len(part.cut)
                    yield places[start:end], part
                    if devices or kind == "image":
                        advance(end - start)
                    start = end

    def _texts(
        self, chunks: Iterable[Sequence[str]], options: Options, advance: Callable[[int], object] = lambda count: None
    ) -> Iterator[Embedded]:
        embedder, dtype = self.embedder("text"), DTYPES[options.compute]
        if self._text is None or not self._text.suits(embedder, dtype):
            self._text = TextCompute(embedder, dtype)
        finish = partial(_finish, options=options)
        return embed_chunks(
            self._text, chunks, options.prompt, texts_a_batch=options.batch_size, finish=finish, advance=advance
        )

    @torch.inference_mode()
    def _images(self, images: Sequence[Any], options: Options) -> Iterator[Embedded]:
        embedder = self.embedder("image")
        tower = cast(ImageTower, embedder.tower)
        dtype = DTYPES[options.compute]
        size = options.batch_size or IMAGES_A_BATCH
        for number, chunk in enumerate(chunked(images, size)):
            read, errors = read_pictures(chunk, tower, number * size, options.skip)
            pixels = torch.from_numpy(read)
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                vectors = embedder(pixels=pixels.to(self.device))
            yield Embedded(_finish(vectors, options), np.zeros(len(chunk), dtype=bool), errors)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        ready_after_fork(self.device)
        training = self.training
        if training:
            self.eval()
        try:
            yield
        finally:
            if training:
                self.train()

    def _report_cut(self, cut: int, count: int) -> None:
        if cut:
            limit = cast(TextTower, self.embedder("text").tower).max_tokens
            log.warning("%d of %d texts were cut at %d tokens", cut, count, limit)

    def save(self, folder: str | Path) -> Path:
        """Write a model folder that :func:`mmcl.load` opens; an old one there is replaced whole.

        A text-only model's folder is also a sentence-transformers folder.

        Raises:
            MmclError: ``folder`` holds something other than a model.
            OSError: the disk is full or refuses.
        """
        from mmcl.formats.folder import save

        return save(self, Path(folder))


def _finish(embeddings: Tensor, options: Options) -> np.ndarray:
    vectors = embeddings.float()[:, : options.dim]
    given: np.ndarray = (unit_length(vectors) if options.normalize else vectors).cpu().numpy()
    if broken := int((~np.isfinite(given).all(axis=1)).sum()):
        raise MmclError(
            f"encode: the model gives {broken:,} of {len(given):,} inputs NaN or infinity: its weights are damaged, or "
            "too large for this precision; take another copy of the model, or dtype='float32'"
        )
    return given
