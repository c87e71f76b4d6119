"""How much each token counts in the mean of a text's token states."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.runtime.errors import MmclError


class TokenWeights(nn.Module):
    """A positive weight for every entry of the vocabulary, learned as its logarithm.

    Args:
        size: of the vocabulary. All weights are 1 until others are given.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(size))

    @classmethod
    def of(cls, values: Tensor) -> TokenWeights:
        """Those with (V,) positive ``values``."""
        weights = cls(len(values))
        with torch.no_grad():
            weights.log_weight.copy_(values.log())
        return weights

    @classmethod
    def smooth_inverse_frequency(cls, tokenizer: Any, smoothing: float) -> TokenWeights:
        """Frequent tokens tell little of what a text is about: token w starts at a / (a + p(w)) (SIF, Arora et al.
        2017, "A simple but tough-to-beat baseline for sentence embeddings", eq. 1).

        Args:
            tokenizer: of SentencePiece's unigram kind, whose pieces come with their ln p from its own training.
            smoothing: a > 0; about the frequency from which on tokens count little.

        Raises:
            MmclError: the tokenizer is of another kind, and knows no frequencies.
        """
        frequency = token_frequencies(tokenizer, "model.text.token_weights")
        return cls.of(smoothing / (smoothing + frequency))

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, L) weights of (N, L) token ids."""
        # An embedding's look-up: its gradient is far faster on a CPU than that of an index.
        return nn.functional.embedding(input_ids, self.log_weight[:, None]).squeeze(-1).exp()

    def values(self) -> Tensor:
        """(V,) weight of each token."""
        return self.log_weight.detach().exp()


def token_frequencies(tokenizer: Any, where: str) -> Tensor:
    """(V,) p(w) of each token in the training of a unigram tokenizer of SentencePiece.

    The special tokens have 1, and so have others beside the pieces: in every text, they tell nothing.

    Raises:
        MmclError: the tokenizer is of another kind, and knows no frequencies; the message begins with ``where``.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    if model.get("type") != "Unigram":
        raise MmclError(
            f"{where}: needs a unigram tokenizer of SentencePiece, which knows how frequent its pieces are; this one "
            f"is a {model.get('type', type(tokenizer).__name__)}. Leave it out"
        )
    log_p = torch.zeros(len(tokenizer))
    log_p[: len(model["vocab"])] = torch.tensor([score for _, score in model["vocab"]])
    return log_p.exp()
