"""The encoder: from raw inputs of any kind to vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.data.batches.inputs import text_inputs
from mmcl.data.images import ImageInput, PreparedImage
from mmcl.encoding.compute import Compute
from mmcl.encoding.fingerprint import fingerprint
from mmcl.encoding.inputs import (
    Options,
    check_collection,
    first_of_equals,
    hint_at_files,
    is_whole,
    listed,
    modality_of,
    read_images,
)
from mmcl.encoding.quantize import RANGED, check_precision, quantize
from mmcl.encoding.text_pipeline import CHUNK, Embedded, chunked, only_texts
from mmcl.encoding.workers import embed_in_workers
from mmcl.formats.folder import save
from mmcl.formats.open import open_model
from mmcl.models.embedder import Embedder
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Conventions, Towers
from mmcl.runtime.device import Devices, pick_devices, ready_after_fork, resolve_precision
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")

T = TypeVar("T")
FEW_INPUTS = 256
"""No bar is shown for so few, unless it is asked for."""


class _OfTowers(Generic[T]):
    """An attribute of an encoder that is one of its towers."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, encoder: Encoder, owner: type) -> T:
        return cast(T, getattr(encoder.towers, self._name))

    def __set__(self, encoder: Encoder, value: T) -> None:
        setattr(encoder.towers, self._name, value)


class Encoder(nn.Module):
    """Embeds texts, images, or both, into one space.

    Args:
        towers: that embed them.

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
    """What it embeds: ``image``, ``text`` or both."""
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

    _precision = "auto"  # what encode computes in, see set_compute
    _fingerprint: dict[str, str] | None = None  # of a backend, which does not hold the weights

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        self.training = towers.training
        self._compute = Compute(towers)

    def __repr__(self) -> str:
        """One line; ``print(encoder.towers)`` shows every layer."""
        nets = ", ".join(f"{name} by {type(self.embedder(name).tower.net).__name__}" for name in self.towers.names)
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return f"Encoder({self.name!r}: {nets}; {self.dim} dimensions, {parameters:,} parameters)"

    @property
    def exact_decoding(self) -> bool:
        """Whether images are decoded exactly. By default JPEG files much larger than the model's input are decoded at
        a half, a quarter or an eighth of their size, which is faster, and moves vectors by up to 8e-3."""
        return any(tower.exact_decoding for tower in self._image_towers())

    @exact_decoding.setter
    def exact_decoding(self, exact: bool) -> None:
        for tower in self._image_towers():
            tower.exact_decoding = exact

    def _image_towers(self) -> list[ImageTower]:
        return [cast(ImageTower, self.embedder(name).tower) for name in self.towers.of_modality("image")]

    def embedder(self, name: str) -> Embedder:
        """The tower called ``name``, or the only one of that modality, with its head.

        Raises:
            MmclError: there is none, or several are of that modality.
        """
        return self.towers.embedder(name)

    def prepare_image(self, image: ImageInput | None) -> PreparedImage:
        """An image decoded and resized as :meth:`encode` does, which takes the result in its place.

        For threads that read ahead: what is kept is as small as the model's input, whatever the image's size.

        Raises:
            ImageError: it cannot be read.
            MmclError: this encoder embeds no images.
        """
        return cast(ImageTower, self.embedder("image").tower).prepare(image)

    def fingerprint(self) -> dict[str, str]:
        """What tells this encoder from others, or from itself after training: ``weights``, a hash of the weights and of
        what else decides the vectors, and ``prompt``, the text before every other. It takes as long as reading them
        does."""
        return self._fingerprint or fingerprint(self.towers)

    def keep_fingerprint(self) -> None:
        """Have the :meth:`fingerprint` of now from here on, whatever becomes of the weights in memory."""
        self._fingerprint = self.fingerprint()

    @property
    def prompts(self) -> dict[str, str]:
        """Name to the text that is put before another, of the text tower; empty without one, or with several."""
        names = self.towers.of_modality("text")
        return dict(self._text_tower(names[0]).prompts) if len(names) == 1 else {}

    def prompt_text(self, prompt: str | None = None, modality: str = "text") -> str:
        """What :meth:`encode` puts before every text.

        Args:
            prompt: as for :meth:`encode`.
            modality: the name of the tower, where several embed texts.

        Raises:
            MmclError: this encoder embeds no text, or has no prompt of that name.
        """
        return self._text_tower(modality).prompt_text(prompt)

    def text_identities(self, texts: Sequence[str], prompt: str | None = None, modality: str = "text") -> np.ndarray:
        """(N,) int64, equal for texts whose vectors behind ``prompt`` are the same, since their tokens are: ``paris``
        and ``Paris ``, for a model that lower-cases.

        Raises:
            MmclError: as :meth:`prompt_text`, or something is no text.
        """
        return self._text_tower(modality).identities(texts, prompt)

    def _text_tower(self, name: str) -> TextTower:
        return cast(TextTower, self.embedder(name).tower)

    @property
    def compute(self) -> str:
        """What :meth:`encode` computes in on the device where the weights are: ``float32`` or ``bfloat16``."""
        return resolve_precision(self._precision, self.device)

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
        self._precision = dtype

    def train(self, mode: bool = True) -> Encoder:
        """As of every module; what :meth:`encode` had prepared of the weights is dropped, since they will change."""
        if mode:
            self._compute.forget()
        return super().train(mode)

    def embed(self, inputs: Any, modality: str | None = None, prompt: str | None = None) -> Tensor:
        """As :meth:`encode`, with gradient, for a training loop of your own: one forward pass a tower.

        It runs as the module stands: with dropout after ``train()``, without after ``eval()``; under ``torch.autocast``
        in its precision.

        Args:
            inputs: as for :meth:`encode`.
            modality: see there.
            prompt: see there.

        Returns:
            (N, D) float32 on the encoder's device, not normalised; (D,) for a single input.

        Raises:
            MmclError: as :meth:`encode`.
        """
        ready_after_fork(self.device)
        items, single = listed(inputs)
        towers = self._tower_of_each(items, modality, prompt)
        vectors, places = [torch.empty(0, self.dim, device=self.device)], []
        for name in dict.fromkeys(towers):
            mine = [place for place, tower in enumerate(towers) if tower == name]
            tensors = self._tensors(name, [items[place] for place in mine], prompt)
            moved = {key: tensor.to(self.device) for key, tensor in tensors.items()}
            vectors.append(self.embedder(name)(**moved).float()[:, : self.dim])
            places += mine
        ordered = torch.cat(vectors)[np.argsort(places)] if places else vectors[0]
        return ordered[0] if single else ordered

    def _tensors(self, name: str, items: Sequence[Any], prompt: str | None) -> dict[str, Tensor]:
        """What the tower ``name`` reads of its inputs."""
        tower = self.embedder(name).tower
        if isinstance(tower, ImageTower):
            return {"pixels": torch.from_numpy(read_images(items, tower, 0)[0])}
        tokens, cut = tower.tokenize(items, prompt)
        self._report_cut(name, cut, len(items))
        return text_inputs(tower, tokens, tower.skipped(prompt))

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
            modality: ``text`` or ``image`` for all inputs, so that a str can name an image's file; or the name of the
                tower that embeds them, where several are of one modality. By type if absent.
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
            MmclError: an input is of no known kind, an image cannot be read, the model lacks the modality, it gave a
                vector with NaN or infinity in it, or a worker process ended; or this process was forked, and the model
                is on a GPU.
        """
        options = self._options(batch_size, normalize, truncate_dim, prompt, precision)
        if on_error not in ("raise", "skip"):
            raise MmclError(f"encode: on_error is {on_error!r}; use 'raise' or 'skip'")
        if calibration is not None and precision in RANGED:
            calibration = self._calibration(calibration, options, modality)
        items, single = listed(inputs)
        towers = self._tower_of_each(items, modality, prompt)
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
            for places, part in self._embedded(items, towers, first, options, self._elsewhere(devices), advance):
                out[places], cut[places] = part.vectors, part.cut
                skipped |= {int(places[position]): reason for position, reason in (part.errors or {}).items()}
        out[repeated], cut[repeated] = out[originals], cut[originals]
        pairs = zip(repeated.tolist(), originals.tolist(), strict=True)
        skipped |= {place: skipped[original] for place, original in pairs if original in skipped}
        for name in self.towers.of_modality("text"):
            self._report_cut(name, int(cut[[tower == name for tower in towers]].sum()), towers.count(name))
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
        modality: str = "text",
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
                chunks before.
            modality: the name of the tower, where several embed texts.
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
        name = self.towers.resolve(modality)
        if self.towers.modality(name) != "text":
            raise MmclError(f"encode_stream: '{name}' embeds images, and this is for texts; use encode")
        if isinstance(texts, str) or getattr(texts, "ndim", 1) == 0:
            raise MmclError("encode_stream: got one text; give an iterable of them, or use encode")
        check_collection(texts, "encode_stream")
        if chunk < 1:
            raise MmclError(f"encode_stream: chunk is {chunk}; it must be 1 or more")
        if precision in RANGED:
            if calibration is None:
                raise MmclError(f"encode_stream: precision '{precision}' needs calibration= vectors or texts")
            calibration = self._calibration(calibration, options, name)
        chunks = chunked(only_texts(texts), chunk)

        def given(part: Embedded) -> Any:
            vectors = quantize(part.vectors, precision, calibration)
            return (vectors, part.cut) if return_truncated else vectors

        return self._stream(name, chunks, options, self._elsewhere(devices), given)

    def _stream(
        self,
        name: str,
        chunks: Iterator[list[str]],
        options: Options,
        devices: list[torch.device],
        given: Callable[[Embedded], Any],
    ) -> Iterator[Any]:
        count = cut = 0
        try:
            with self._compute.evaluating():
                parts = (
                    embed_in_workers(self._send, open_copy, chunks, devices, options, name)
                    if devices
                    else self._compute.texts(name, chunks, options)
                )
                for part in parts:
                    count, cut = count + len(part.cut), cut + int(part.cut.sum())
                    yield given(part)
        finally:
            self._report_cut(name, cut, count)

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

    def _tower_of_each(self, items: Sequence[Any], wanted: str | None, prompt: str | None) -> list[str]:
        """The name of the tower that embeds each input."""
        named = wanted if wanted is not None and wanted in self.towers.embedders else None
        modality = wanted if named is None else self.towers.modality(named)
        kinds = [modality_of(item, place, modality, self.towers.names) for place, item in enumerate(items)]
        towers = {kind: named or self.towers.resolve(kind) for kind in dict.fromkeys(kinds)}
        if prompt and set(kinds) == {"image"}:
            raise MmclError(f"encode: prompt '{prompt}' goes before texts, and all inputs are images; leave it out")
        return [towers[kind] for kind in kinds]

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
        towers: Sequence[str],
        wanted: Sequence[int],
        options: Options,
        devices: list[torch.device],
        advance: Callable[[int], object],
    ) -> Iterator[tuple[np.ndarray, Embedded]]:
        """Some of the ``wanted`` places in ``items`` after the other, with what is embedded of them."""
        with self._compute.evaluating():
            for name in dict.fromkeys(towers):
                places = np.array([place for place in wanted if towers[place] == name])
                mine = [items[place] for place in places]
                images = self.towers.modality(name) == "image"
                parts: Iterable[Embedded]
                if devices:
                    size = max(1, min(CHUNK, -(-len(mine) // (4 * len(devices)))))
                    parts = embed_in_workers(self._send, open_copy, chunked(mine, size), devices, options, name)
                elif images:
                    parts = self._compute.images(name, mine, options)
                else:
                    parts = self._compute.texts(name, chunked(mine, CHUNK), options, advance)
                start = 0
                for part in parts:
                    end = start + len(part.cut)
                    yield places[start:end], part
                    if devices or images:
                        advance(end - start)
                    start = end

    def _report_cut(self, name: str, cut: int, count: int) -> None:
        if cut:
            log.warning("%d of %d texts were cut at %d tokens", cut, count, self._text_tower(name).max_tokens)

    def _send(self, folder: Path) -> None:
        """Write the model for :func:`open_copy`; its own path remains as it is."""
        path = self.path
        try:
            self.save(folder)
        finally:
            self.path = path

    def save(self, folder: str | Path) -> Path:
        """Write a model folder that :func:`mmcl.load` opens; an old one there is replaced.

        The folder of a model with one tower, of texts, is also a sentence-transformers folder.

        Raises:
            MmclError: ``folder`` holds something other than a model.
            OSError: the disk is full or refuses.
        """
        return save(self.towers, Path(folder))


def open_copy(folder: str, device: str, dtype: str) -> Encoder:
    """The encoder in a model folder, ready to encode on ``device`` in the precision ``dtype``."""
    encoder = Encoder(open_model(folder).to(torch.device(device)))
    encoder.set_compute(dtype)
    return encoder
