"""The encoder: from raw inputs of any kind to vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.encoding.compute import Compute, tower_inputs
from mmcl.encoding.described import Described
from mmcl.encoding.inputs import (
    Encoded,
    Options,
    Request,
    check_collection,
    first_of_equals,
    hint_at_files,
    listed,
    tower_of_each,
)
from mmcl.encoding.quantize import RANGED, check_precision, quantize
from mmcl.encoding.text_compute import check_int8
from mmcl.encoding.text_pipeline import CHUNK, Embedded, chunked, only_texts
from mmcl.encoding.windows import windows
from mmcl.formats.folder import save
from mmcl.formats.threshold import still_measured, write_thresholds
from mmcl.models.towers import Towers
from mmcl.runtime.device import Devices, ready_after_fork, resolve_precision
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.progress import progress

log = logging.getLogger("mmcl")

FEW_INPUTS = 256
"""No bar is shown for so few, unless it is asked for."""


class Encoder(Described):
    """Embeds texts, images, rows of tables, or several of these, into one space.

    Args:
        towers: that embed them.
    """

    _precision = "auto"  # what encode computes in, see set_compute

    def __init__(self, towers: Towers) -> None:
        super().__init__(towers)
        self._compute = Compute(towers)

    def select(self, *names: str) -> Encoder:
        """An encoder by these towers alone, which shares their weights.

        ``encoder.select("answer")`` encodes a corpus of answers where the model embeds questions too.

        Raises:
            MmclError: a name is neither a tower's nor a modality with one tower.
        """
        part = Encoder(self.towers.select(*names))
        part.set_compute(self._precision)
        part._kept_hashes = self._kept_hashes
        return part

    def only(self, tower: str) -> Encoder:
        """An encoder without the other towers of this one's modality, which shares the weights.

        Raises:
            MmclError: there is no such tower.
        """
        towers, name = self.towers, self.towers.resolve(tower)
        return self.select(name, *(each for each in towers.names if towers.modality(each) != towers.modality(name)))

    def parts(self) -> Iterator[Encoder]:
        """Encoders by some of the towers, first by all of them: what vectors of this model may have been made by."""
        names = self.towers.names
        for count in range(len(names), 0, -1):
            yield from (self.select(*some) for some in combinations(names, count))

    @property
    def compute(self) -> str:
        """What :meth:`encode` computes in where the weights are: ``float32``, ``bfloat16`` or ``int8``."""
        return resolve_precision(self._precision, self.device)

    def set_compute(self, dtype: str = "auto") -> None:
        """Have :meth:`encode` compute in another precision than ``auto`` from now on; the weights stay as they are.

        Text towers, and open_clip's vision transformers on a CPU, get a copy of their weights, cast once and cast anew
        after these have changed; other image towers run under autocast. Softmax, normalisation and
        pooling are computed in float32.

        In ``int8`` the linear layers of a text transformer multiply 8-bit integers: weights with one scale an output,
        inputs in ranges that are measured once, before the first text is encoded, on texts of this package. So a text's
        vector is the same to the bit whatever stands beside it. Towers of images and tables compute in what ``auto``
        takes.

        Args:
            dtype: ``float32``, ``bfloat16``, ``int8``, or ``auto``: bfloat16 where the device multiplies it natively.

        Raises:
            MmclError: it is none of these; or int8, and there is no text tower, one is of a family that does not run
                packed, or it is on a GPU or a CPU that does not multiply 8-bit integers.
        """
        known = ("auto", "bfloat16", "float32", "int8")
        if dtype not in known:
            raise MmclError(f"encode cannot compute in '{dtype}'; {nearest(dtype, known)}")
        if dtype == "int8":
            check_int8(self.towers)
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
        towers = tower_of_each(self.towers, items, modality, prompt)
        vectors, places = [torch.empty(0, self.dim, device=self.device)], []
        for name in dict.fromkeys(towers):
            mine = [place for place, tower in enumerate(towers) if tower == name]
            tensors, cut = tower_inputs(self.embedder(name), [items[place] for place in mine], prompt)
            self._report_cut(name, cut, len(mine))
            moved = {key: tensor.to(self.device) for key, tensor in tensors.items()}
            vectors.append(self.embedder(name)(**moved).float()[:, : self.dim])
            places += mine
        ordered = torch.cat(vectors)[np.argsort(places)] if places else vectors[0]
        return ordered[0] if single else ordered

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
        devices: Devices | None = None,
        calibration: Any = None,
    ) -> np.ndarray:
        """Embed one input or a list of them.

        The weights are those of the moment: of an optimizer's last step, of ``load_state_dict``, of a change in place.
        After a change through ``.data`` in place, which PyTorch does not count, call ``train()`` and ``eval()`` first.

        Texts that are equal are computed once. A text's vector does not depend on the others: within 1e-5 in float32,
        and to the bit in bfloat16 and int8 where texts run without padding. Other networks round sums to bfloat16 that
        were added up in another order, so that a vector differs in its third digit.

        Args:
            inputs: a str is text; a ``pathlib.Path``, PIL image, uint8 (H, W, 3) array, encoded bytes or file opened as
                bytes is an image; a dict is a row of a table by its columns; or a list, column or generator of these,
                mixed if several modalities are there. A text without words is one like any other.
            modality: ``text``, ``image`` or ``table`` for all inputs, so that a str can name an image's file; or the
                name of the tower that embeds them, where several are of one modality. By type if absent.
            batch_size: inputs a forward pass; ``auto`` fills text batches up to a number of tokens.
            normalize: give every vector unit length.
            precision: ``float32``, ``float16``, ``int8``, ``uint8``, ``binary`` or ``ubinary``, of the result; see
                :func:`mmcl.encoding.quantize.quantize`.
            truncate_dim: keep the first so many dimensions (before normalising); ``dim`` of them if absent.
            prompt: name of one of the model's prompts, put before every text; the default one if absent; "" for none.
            show_progress: a bar on stderr; if absent, shown for more than a few inputs on a terminal.
            devices: compute in other processes, each with a copy of the model: a device (``cuda:0``), a list of them
                (``["cpu", "cpu"]``), or a number of processes on the CPU, which share its threads.
            calibration: for ``int8`` and ``uint8``: (M, D) vectors, or inputs to encode, that give each dimension's
                range; the encoded vectors themselves if absent.

        Returns:
            (N, D) in the order of the inputs; (D,) for a single input; (0, D) for an empty list.

        Raises:
            MmclError: an input is of no known kind, an image cannot be read, the model lacks the modality, it gave a
                vector with NaN or infinity in it, or a worker process ended; or this process was forked, and the model
                is on a GPU.
        """
        request = Request(batch_size, normalize, precision, truncate_dim, prompt, show_progress, devices, calibration)
        return self._encode(inputs, modality, request).vectors

    def encode_with_details(
        self, inputs: Any, modality: str | None = None, *, on_error: str = "raise", **settings: Any
    ) -> Encoded:
        """As :meth:`encode`, with what became of the inputs.

        Args:
            inputs: as for :meth:`encode`, as is ``modality``.
            modality: see there.
            on_error: ``raise`` for the first image that cannot be read, or ``skip`` all such of a list.
            settings: the other arguments of :meth:`encode`, by name.

        Raises:
            MmclError: as :meth:`encode`.
        """
        if on_error not in ("raise", "skip"):
            raise MmclError(f"encode: on_error is {on_error!r}; use 'raise' or 'skip'")
        return self._encode(inputs, modality, Request(**settings), skip=on_error == "skip")

    def _encode(self, inputs: Any, modality: str | None, request: Request, skip: bool = False) -> Encoded:
        check_precision(request.precision)
        options, calibration = request.options(self.towers, self.compute), request.calibration
        if calibration is not None and request.precision in RANGED:
            calibration = self._calibration(calibration, options, modality)
        items, single = listed(inputs)
        towers = tower_of_each(self.towers, items, modality, request.prompt)
        if skip and not single:
            if request.devices is not None:
                raise MmclError("encode: on_error='skip' does not go with devices=; leave one of them out")
            options = options._replace(skip=True)
        if modality is None:
            hint_at_files(item for item in items if type(item) is str)
        out, cut, skipped = self._embedded(items, towers, options, request)
        for name in self.towers.of_modality("text"):
            self._report_cut(name, int(cut[[tower == name for tower in towers]].sum()), towers.count(name))
        if skipped:
            place = min(skipped)
            log.warning(
                "%d of %d inputs left out; the first, input %d: %s", len(skipped), len(items), place, skipped[place]
            )
            kept = [place for place in range(len(items)) if place not in skipped]
            out, cut = out[kept], cut[kept]
        vectors = quantize(out, request.precision, calibration)
        return Encoded(vectors[0], bool(cut[0]), {}) if single else Encoded(vectors, cut, dict(sorted(skipped.items())))

    def _embedded(
        self, items: list[Any], towers: list[str], options: Options, request: Request
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """(N, D) vectors before they are quantized, (N,) which texts were cut, and the reasons of what cannot be read;
        of equal inputs one is computed."""
        out = np.zeros((len(items), options.dim), "float16" if request.precision == "float16" else "float32")
        cut = np.zeros(len(items), dtype=bool)
        skipped: dict[int, str] = {}
        first, repeated, originals = first_of_equals(items)
        shown = False if request.show_progress is None and len(items) <= FEW_INPUTS else request.show_progress
        # What float16 cannot hold, quantize reports.
        with progress("encode", len(first), "inputs", shown) as advance, np.errstate(over="ignore"):
            elsewhere = self._compute.elsewhere(request.devices)
            for places, part in self._compute.some(items, towers, first, options, elsewhere, advance):
                out[places], cut[places] = part.vectors, part.cut
                skipped |= {int(places[position]): reason for position, reason in (part.errors or {}).items()}
        out[repeated], cut[repeated] = out[originals], cut[originals]
        pairs = zip(repeated.tolist(), originals.tolist(), strict=True)
        skipped |= {place: skipped[original] for place, original in pairs if original in skipped}
        return out, cut, skipped

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
        devices: Devices | None = None,
        calibration: Any = None,
        chunk: int = CHUNK,
    ) -> Iterator[np.ndarray]:
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
            devices: see there.
            calibration: see there.
            chunk: texts that are tokenized, sorted by length and given out together.

        Yields:
            (n, D) in the order of the texts, n = ``chunk`` but for the last. At the end a warning counts the texts that
            were cut.

        Raises:
            MmclError: as :meth:`encode`; or an item is no text.
        """
        check_precision(precision)
        request = Request(batch_size, normalize, precision, truncate_dim, prompt)
        options = request.options(self.towers, self.compute)
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

        embedded = self._compute.stream(name, chunks, options, self._compute.elsewhere(devices))
        return self._stream(name, embedded, lambda vectors: quantize(vectors, precision, calibration))

    def encode_blocks(
        self,
        blocks: Iterable[list[Any]],
        modality: str,
        *,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        devices: Devices | None = None,
    ) -> Iterator[Embedded]:
        """Embed block after block, each by itself: its vectors do not depend on what stands in the others.

        Args:
            blocks: lists of inputs of one kind, none empty; read one or a few ahead of the one computed.
            modality: as for :meth:`encode`, as are the following; the vectors have unit length.
            truncate_dim: see there.
            prompt: see there.
            devices: see there; the processes are started once.

        Yields:
            The vectors (n, D) of each block, and which of its texts were cut; nothing is logged of that.

        Raises:
            MmclError: as :meth:`encode`.
        """
        options = Request(truncate_dim=truncate_dim, prompt=prompt).options(self.towers, self.compute)
        name = self.towers.resolve(modality)
        yield from self._compute.stream(name, blocks, options, self._compute.elsewhere(devices))

    def windows(
        self, texts: Sequence[str], prompt: str | None = None, overlap: int | None = None, modality: str = "text"
    ) -> list[list[tuple[int, int]]]:
        """Where to cut long texts into windows that the model reads to their end; see :func:`mmcl.encoding.windows`."""
        return windows(self.towers.text(modality).processor, texts, prompt, overlap)

    def _stream(
        self, name: str, parts: Iterator[Embedded], finish: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[np.ndarray]:
        count = cut = 0
        try:
            for part in parts:
                count, cut = count + len(part.cut), cut + int(part.cut.sum())
                yield finish(part.vectors)
        finally:
            self._report_cut(name, cut, count)

    def _calibration(self, calibration: Any, options: Options, modality: str | None) -> np.ndarray:
        if isinstance(calibration, np.ndarray) and calibration.dtype.kind == "f":
            return calibration
        return self.encode(
            calibration,
            modality=modality,
            normalize=options.normalize,
            truncate_dim=options.dim,
            prompt=options.prompt,
            show_progress=False,
        )

    def _report_cut(self, name: str, cut: int, count: int) -> None:
        if cut:
            log.warning("%d of %d texts were cut at %d tokens", cut, count, self.towers.text(name).processor.max_tokens)

    def save(self, folder: str | Path) -> Path:
        """Write a model folder that :func:`mmcl.load` opens; an old one there is replaced.

        The folder of a model of texts alone is also a sentence-transformers folder. The threshold that
        ``mmcl eval threshold`` kept in the folder that the model came from goes with it, while its weights are those.

        Raises:
            MmclError: ``folder`` holds something other than a model.
            OSError: the disk is full or refuses.
        """
        kept = {}
        if self.path is not None:
            kept = still_measured(self.path, (part.fingerprint()["weights"] for part in self.parts()))
        return save(self.towers, Path(folder), partial(write_thresholds, kept=kept) if kept else None)
