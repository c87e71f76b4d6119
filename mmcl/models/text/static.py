"""Networks of texts without context: a token has the same vector wherever it stands.

They read tokens alone, without the special ones around a text; an id from the number of their vectors on stands for no
token, so that a text without any token has the zero vector."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.models.text.tower import TextTower


class TokenMean(nn.Module):
    """The mean of the vectors of a text's tokens, all of them learned: a static embedding.

    Args:
        entries: of the vocabulary.
        width: of the vectors.
    """

    bare = True

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(entries, width)
        nn.init.normal_(self.vectors.weight, std=width**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, width) features of (N, L) token ids; the mask is 1 for tokens and 0 for padding."""
        table = self.vectors.weight
        known = (attention_mask != 0) & (input_ids < len(table))
        weights = known.to(table.dtype)
        total = F.embedding_bag(input_ids.where(known, 0), table, mode="sum", per_sample_weights=weights)
        return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


class TokenCounts(nn.Module):
    """A bag of words: how often a text has each entry of the vocabulary, by a weight of the entry, such as its idf.

    Args:
        entries: of the vocabulary, and width of the features.
        repeats: whether a token that a text has several times counts so often, rather than once.
    """

    bare = True

    def __init__(self, entries: int, repeats: bool = True) -> None:
        super().__init__()
        self.repeats = repeats
        self.weights = nn.Parameter(torch.ones(entries))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, entries) features of (N, L) token ids; the mask is 1 for tokens and 0 for padding."""
        known = (attention_mask != 0) & (input_ids < len(self.weights))
        counts = self.weights.new_zeros(len(input_ids), len(self.weights))
        counts = counts.scatter_add(1, input_ids.where(known, 0), known.to(counts.dtype))
        return (counts if self.repeats else counts.clamp(max=1)) * self.weights


class States(NamedTuple):
    """What a network of transformers gives: (N, L, width) states of the last layer, and of all layers, if asked for."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class WordVectors(nn.Module):
    """A vector for each entry of the vocabulary, as the only layer of a network like those of transformers.

    Args:
        entries: of the vocabulary.
        width: of the vectors.
    """

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(entries, width)
        self.config = SimpleNamespace(vocab_size=entries, hidden_size=width)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table, as transformers' models call it."""
        return self.vectors

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> States:
        """The states of (N, L) token ids."""
        return States(self.vectors(input_ids))


class WordTower(TextTower):
    """Word vectors, then layers over them and a pooling; arguments as of :class:`~mmcl.models.text.tower.TextTower`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        skipped: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """(N, width) features; zero for texts without any known word."""
        known = input_ids < self.net.config.vocab_size
        if attention_mask is not None:
            known = known & (attention_mask != 0)
        features = super().forward(input_ids.where(known, 0), known.to(torch.int64), skipped)
        return features.masked_fill(~known.any(dim=1, keepdim=True), 0.0)
