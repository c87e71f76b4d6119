"""Tokens to embeddings for ``encode``: in the precision asked for, with weights cast once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mmcl.encoding.calibration import TEXTS
from mmcl.encoding.weights_state import weights_state
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.grouping import equal_lengths
from mmcl.models.text.packed.families import describe
from mmcl.models.text.packed.int8 import int8_transformer
from mmcl.models.text.packed.layout import padded_rows
from mmcl.models.text.packed.transformer import InferenceWeights, PackedTransformer
from mmcl.models.text.packed_features import packs
from mmcl.models.text.pooling import pool, reads_layers
from mmcl.models.text.tower import OWN_VECTOR, TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.device import multiplies_int8, resolve_precision
from mmcl.runtime.errors import MmclError
from mmcl.runtime.products import fast_products

log = logging.getLogger("mmcl")

PACKED_TOKENS = 2048
"""Of a packed batch. Smaller ones have more operations a token, larger ones leave the caches. MiniLM on one core of an
EPYC 9005, microseconds of processor time a token with 512, 1024, 2048 and 4096 tokens: 153, 142, 133, 135 in float32,
99, 91, 81, 79 in bfloat16."""
PADDED_TOKENS = {"cpu": 4096, "cuda": 32_768, "mps": 16_384}
CLOSE_INT8 = 0.95
"""Cosine to states in float32 from which int8 needs no warning."""
EFFICIENT_TOKENS = 512
"""A CPU's products with fewer rows lose more than the padding of slightly different lengths costs."""


class TextCompute:
    """Embeds tokenized texts; keeps what it prepared (joined or cast weights) until the weights change.

    On a CPU, transformers of known families run packed (:class:`PackedTransformer`); others, and all on a GPU, in
    padded batches of similar, where there are enough of them equal length, for which the tower needs no mask. A network
    that mixes padding in has batches of equal length alone.

    Args:
        embedder: of texts, in evaluation mode.
        dtype: of the tower's products; ``torch.int8``: see :func:`check_int8`. Pooling and head are computed in
            float32.

    Attributes:
        tower: the embedder's own.
        processor: the embedder's own; its prompts may change at any time.
    """

    def __init__(self, embedder: TextEmbedder, dtype: torch.dtype) -> None:
        tower = embedder.tower
        self._embedder = embedder
        self._state = _state(embedder, dtype)
        self._packed: PackedTransformer | None = None
        self.tower, self.processor = tower, embedder.processor
        self._net = tower
        device = next(tower.parameters()).device.type
        if dtype == torch.int8:
            _check_int8(tower)
            self._packed = _int8(embedder)
        elif _runs_packed(tower):
            self._packed = PackedTransformer(tower.net, InferenceWeights(dtype), dtype)
        elif not hasattr(tower.net, "backend") and any(  # what runs outside torch has a precision of its own
            weight.dtype != dtype for weight in tower.parameters() if weight.is_floating_point()
        ):
            self._net = _cast(tower, dtype)
        self._budget = PACKED_TOKENS if self._packed else PADDED_TOKENS.get(device, PADDED_TOKENS["cuda"])
        self._splits = device == "cpu" and self._packed is None

    def suits(self, embedder: TextEmbedder, dtype: torch.dtype) -> bool:
        """Whether it still computes what ``embedder`` does: nothing trained, loaded, moved or replaced since."""
        return self._state == _state(embedder, dtype)

    def batches(self, lengths: np.ndarray, texts: int | None = None) -> Iterator[np.ndarray]:
        """Which texts to embed together, those with most tokens first: positions in ``lengths``.

        Args:
            lengths: (N,) number of tokens of each text.
            texts: so many at once; filled up to a number of tokens if absent.
        """
        order = np.argsort(-lengths, kind="stable")
        if self.tower.padding.mixes:
            for begin, end in equal_lengths(lengths[order].tolist()):
                most = texts or max(1, self._budget // int(lengths[order[begin]]))
                yield from (order[start : min(start + most, end)] for start in range(begin, end, most))
            return
        if texts is not None:
            yield from (order[start : start + texts] for start in range(0, len(order), texts))
            return
        start = total = 0
        for end, length in enumerate(lengths[order].tolist()):
            longest = int(lengths[order[start]])
            needed = total + length if self._packed else (end + 1 - start) * longest
            ends_run = self._splits and length != longest and total >= EFFICIENT_TOKENS
            if end > start and (needed > self._budget or ends_run):
                yield order[start:end]
                start, total = end, 0
            total += length
        if len(order):
            yield order[start:]

    def __call__(self, tokens: Sequence[np.ndarray], skipped: int = 0) -> Tensor:
        """(N, D) float32 embeddings, not normalised, of texts in an order of :meth:`batches`.

        Args:
            tokens: the ids of each text.
            skipped: number of leading tokens that the pooling leaves out.
        """
        with fast_products():
            features = (
                self._packed_features(tokens, skipped) if self._packed else self._padded_features(tokens, skipped)
            )
            head = self._embedder.head
            weight = next(head.parameters(), None)
            return _filled_up(head, features.float() if weight is None else features.to(weight.dtype)).float()

    def _packed_features(self, tokens: Sequence[np.ndarray], skipped: int) -> Tensor:
        assert self._packed is not None
        layers, runs = self._packed(tokens, all_layers=reads_layers(self.tower.pooling))
        features, start, row = [], 0, 0
        for texts, length in runs:
            part = [states[start : start + texts * length].view(texts, length, -1) for states in layers]
            run = tokens[row : row + texts]
            start, row = start + texts * length, row + texts
            if self.tower.pooling in OWN_VECTOR:
                features.append(_filled_up(self.tower.net.pooler, part[-1].float()))
                continue
            left_out = torch.full((texts,), skipped, device=part[-1].device) if skipped else None
            weights = None
            if self.tower.token_weights is not None:
                weights = self.tower.token_weights(torch.from_numpy(np.stack(run)).to(part[-1].device))
            features.append(pool(part[-1], None, self.tower.pooling, skipped=left_out, layers=part, weights=weights))
        return torch.cat(features)

    def _padded_features(self, tokens: Sequence[np.ndarray], skipped: int) -> Tensor:
        device = next(self._net.parameters()).device
        batch = {name: values.to(device) for name, values in self.processor.collate(tokens).items()}
        mask = None if len(tokens[0]) == len(tokens[-1]) else batch["attention_mask"]
        left_out = {"skipped": torch.full((len(tokens),), skipped, device=device)} if skipped else {}
        return cast(Tensor, self._net(batch["input_ids"], mask, **left_out))


def _filled_up(module: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """What ``module`` gives of each row: products of few rows have other sums than those of many, to the last bit."""
    missing = padded_rows(len(rows)) - len(rows)
    return module(torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]))[: len(rows)] if missing else module(rows)


def check_int8(towers: Towers) -> None:
    """Refuse 8-bit integers where this package has no such products; log which towers will do without.

    Raises:
        MmclError: there is no text tower, it is on a GPU, its network does not run packed, or the CPU has no such
            products.
    """
    texts = towers.of_modality("text")
    if not texts:
        raise MmclError("dtype int8: the model has no text tower, and others have no such form; use dtype 'auto'")
    for name in texts:
        _check_int8(towers.text(name).tower)
    if others := [name for name in towers.names if name not in texts]:
        log.info("int8 is for texts: %s in %s", ", ".join(others), resolve_precision("auto", towers.device))


def _check_int8(tower: TextTower) -> None:
    device = next(tower.parameters()).device
    if device.type != "cpu":
        raise MmclError(
            f"dtype int8: only on a CPU, and the model is on {device.type}; use device 'cpu' or dtype 'auto'"
        )
    if not multiplies_int8(device):
        raise MmclError("dtype int8: this CPU has no products of 8-bit integers (AVX512-VNNI, AMX); use dtype 'auto'")
    if not _runs_packed(tower):
        raise MmclError(
            f"dtype int8: not for a text tower of {type(tower.net).__name__} with this pooling and padding; use dtype "
            "'auto', or where it can be exported, backend 'onnx-int8' or 'openvino-int8'"
        )


def _runs_packed(tower: TextTower) -> bool:
    """Whether texts run through it end to end, without padding."""
    return next(tower.parameters()).device.type == "cpu" and packs(tower) and describe(tower.net) is not None


def _int8(embedder: TextEmbedder) -> PackedTransformer:
    tokens = sorted(embedder.processor.tokenize(TEXTS)[0], key=len, reverse=True)
    prepared, cosine = int8_transformer(embedder.tower.net, tokens)
    log.log(
        logging.INFO if cosine > CLOSE_INT8 else logging.WARNING,
        "int8: ranges measured on %d texts, whose tokens' states have a cosine of %.3f to those in float32%s",
        len(TEXTS),
        cosine,
        "" if cosine > CLOSE_INT8 else ": evaluate the model in int8 before you use it",
    )
    return prepared


def _cast(tower: TextTower, dtype: torch.dtype) -> TextTower:
    """A copy with the network's weights in ``dtype``.

    The buffers stay as they are: in bfloat16, the frequencies of rotary positions would turn late tokens by a wrong
    angle. So do the tokens' weights, which are the pooling's.
    """
    copied = copy.deepcopy(tower).eval()
    for weight in copied.net.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return copied


def _state(embedder: TextEmbedder, dtype: torch.dtype) -> Hashable:
    """Changes with every step of an optimizer, loading of weights, move, and change of the net or its pooling."""
    tower = embedder.tower
    return dtype, id(embedder), id(tower.net), tower.pooling, weights_state(tower)
