"""Texts to vectors by a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from mmcl.data.batches.inputs import text_inputs
from mmcl.data.batches.text_reader import TextReader
from mmcl.encoding.shares import embed
from mmcl.models.towers import Towers
from mmcl.runtime.device import resolve_precision

TEXTS_AT_ONCE = 16_384  # tokenized, of a search's documents


class LiveTexts:
    """``encode`` of the texts of a model in training, by its weights as they are, each process its share.

    All processes call it together, with the same texts, and all get all vectors.
    """

    def __init__(self, encoder: Towers) -> None:
        self._encoder = encoder
        self._processor = encoder.text().processor

    @property
    def prompts(self) -> Mapping[str, str]:
        """The model's."""
        return self._processor.prompts

    def text_identities(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """(N,) int64, equal for texts that the tower cannot tell apart."""
        return self._processor.identities(texts, prompt)

    def encode(self, inputs: Sequence[str], *, prompt: str | None = None, normalize: bool = True) -> np.ndarray:
        """(N, D) float32, in the order of the texts."""
        reader = TextReader(self._processor, prompt)
        chunks = [inputs[start : start + TEXTS_AT_ONCE] for start in range(0, len(inputs), TEXTS_AT_ONCE)]
        vectors = [self._chunk(texts, reader, normalize) for texts in chunks]
        return np.concatenate([np.empty((0, self._encoder.width), np.float32), *vectors])

    def _chunk(self, texts: Sequence[str], reader: TextReader, normalize: bool) -> np.ndarray:
        tokens, _ = reader.tokenize(texts)
        order = np.argsort([-len(ids) for ids in tokens], kind="stable")  # texts of a length together: little padding

        def inputs(places: np.ndarray) -> dict[str, Tensor]:
            return text_inputs(self._processor, [tokens[place] for place in order[places]], reader.skipped)

        vectors = np.empty((len(texts), self._encoder.width), dtype=np.float32)
        precision = resolve_precision("auto", self._encoder.device)  # as a loaded model computes in
        vectors[order] = embed(self._encoder, "text", inputs, len(texts), normalize, precision)
        return vectors
