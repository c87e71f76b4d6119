"""A bag of tokens: spelling that is given, and meaning that is learned."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.config.model import TextTowerConfig
from mmcl.data.processors.unigram import BLANK
from mmcl.models.text.static import TokenCounts, TokenMean
from mmcl.models.text.token_weights import token_frequencies
from mmcl.runtime.errors import MmclError

INSIDE = 0.5
"""Weight in the spelling of a piece that goes on with a word, beside that of one that begins it: of many pieces, a word
would outweigh the others."""
COMMON = 0.05
"""Frequency from which on a character n-gram counts for almost nothing."""


class TokenBag(nn.Module):
    """Two weighted sums over a text's tokens, side by side: of how these are written, which stays as it is, and of what
    they mean, which is learned. A token that a text has several times counts once.

    The spelling of a token is a random projection of its character n-grams, weighted by their rarity, of length 1: the
    cosine of two tokens is about that of their TF-IDF vectors (Johnson and Lindenstrauss 1984; n-grams as in Bojanowski
    et al. 2017, arXiv:1607.04606). Token w weighs a / (a + p(w)) (SIF, Arora et al. 2017). Each of the two sums is
    normalised, so that neither outweighs the other in long texts: the cosine of two texts is a fixed mean of both. In
    training it is that of the meaning alone, to which what the spelling tells would be noise.

    Args:
        entries: of the vocabulary.
        width: of the features.
        learned: how many of these are learned.
        share: of the cosine that is learned.
        smoothing: a of the weights, about the frequency from which on tokens weigh little, in the sum of the spelling
            and in that of the meaning.
        numbers: how many times more a token of digits weighs in the spelling: no other says the same as a number.
        ngrams: shortest and longest n-gram.

    Raises:
        ValueError: no feature would be left for the spelling, or another number makes no sense.
    """

    weights: Tensor

    def __init__(
        self,
        entries: int,
        width: int,
        learned: int = 64,
        share: float = 0.2,
        smoothing: tuple[float, float] = (3e-4, 3e-3),
        numbers: float = 1.0,
        ngrams: tuple[int, int] = (3, 4),
    ) -> None:
        super().__init__()
        if not 0 < learned < width:
            raise ValueError(f"learned is {learned}, and not from 1 to {width - 1}, the width less 1")
        if not (0 < share < 1 and min(smoothing) > 0 and numbers > 0):
            raise ValueError(f"share is {share}, of 1, smoothing {smoothing} and numbers {numbers}; all are above 0")
        if not 1 <= ngrams[0] <= ngrams[1]:
            raise ValueError(f"ngrams are {ngrams}; name the shortest and the longest, such as [3, 4]")
        self.share, self.smoothing, self.numbers, self.ngrams = share, smoothing, numbers, ngrams
        self.spelling = nn.Embedding(entries, width - learned)
        self.spelling.requires_grad_(False)
        self.meaning = nn.Embedding(entries, learned)
        nn.init.normal_(self.meaning.weight, std=learned**-0.5)  # of length 1: at first, each means only itself
        self.register_buffer("weights", torch.ones(2, entries))

    @torch.no_grad()
    def start(self, tokenizer: Any) -> None:
        """Set weights and spelling by the vocabulary of a unigram tokenizer of SentencePiece.

        Raises:
            MmclError: the tokenizer is of another kind, and knows no frequencies.
        """
        frequency = token_frequencies(tokenizer, "model.text.name: bag:ngrams")
        pieces = tokenizer.convert_ids_to_tokens(range(len(frequency)))
        number = torch.tensor([piece.strip(BLANK).isdecimal() for piece in pieces])
        smoothing = torch.tensor(self.smoothing)[:, None]
        self.weights.copy_(smoothing / (smoothing + frequency))
        self.weights[0, number] *= self.numbers
        self.weights[0, torch.tensor([not piece.startswith(BLANK) for piece in pieces])] *= INSIDE
        self.spelling.weight.copy_(self._project([self._split(piece) for piece in pieces], frequency))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, width) features, of length 1, of (N, L) token ids; the mask is 1 for tokens and 0 for padding."""
        counted = _distinct(input_ids, attention_mask)
        meaning = self._sum(self.meaning.weight, self.weights[1], input_ids, counted)
        if self.training:
            return F.pad(meaning, (self.spelling.embedding_dim, 0))
        spelling = self._sum(self.spelling.weight, self.weights[0], input_ids, counted)
        return torch.cat([(1 - self.share) ** 0.5 * spelling, self.share**0.5 * meaning], dim=1)

    def _sum(self, table: Tensor, weights: Tensor, input_ids: Tensor, counted: Tensor) -> Tensor:
        """The (N, D) sums, of length 1, of those tokens' vectors in ``table`` that are counted, each by its weight."""
        each = (weights[input_ids] * counted).to(table.dtype)
        return F.normalize(F.embedding_bag(input_ids, table, mode="sum", per_sample_weights=each))

    def _split(self, piece: str) -> list[str]:
        shortest, longest = self.ngrams
        sizes, piece = range(shortest, longest + 1), piece + BLANK  # a mark of its end, as that of its start
        return [piece[at : at + size] for size in sizes for at in range(len(piece) - size + 1)] or [piece]

    def _project(self, ngrams: list[list[str]], frequency: Tensor) -> Tensor:
        """(V, width) unit vectors of V tokens, of which these are the n-grams."""
        numbers = {ngram: number for number, ngram in enumerate(dict.fromkeys(chain(*ngrams)))}
        flat = torch.tensor([numbers[ngram] for ngram in chain(*ngrams)])
        counts = torch.tensor([len(each) for each in ngrams])
        seen = torch.zeros(len(numbers)).index_add(0, flat, frequency.repeat_interleave(counts))
        rarity = (COMMON / seen.clamp(min=1e-7)).log().clamp(min=0.1)
        offsets = counts.cumsum(0) - counts
        projected = [
            F.embedding_bag(flat, torch.randn(len(numbers), 1), offsets, mode="sum", per_sample_weights=rarity[flat])
            for _ in range(self.spelling.embedding_dim)
        ]
        return F.normalize(torch.cat(projected, dim=1))


def _distinct(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(N, L) bool: the first of each text's equal tokens, without padding."""
    ids, order = input_ids.masked_fill(attention_mask == 0, -1).sort(dim=1, stable=True)
    first = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True) & (ids >= 0)
    return torch.empty_like(first).scatter(1, order, first)


def token_bag(name: str, config: TextTowerConfig, entries: int) -> nn.Module:
    """A new bag of tokens: `bag:ngrams` is a :class:`TokenBag`, `bag:mean` a
    :class:`~mmcl.models.text.static.TokenMean`, and `bag:counts` a :class:`~mmcl.models.text.static.TokenCounts`.

    Their arguments are those of ``model.text.args``, beside the size of the vocabulary and ``model.text.width``.

    Raises:
        MmclError: there is no bag of that name.
    """
    if name == "ngrams":
        return TokenBag(entries, config.width, **config.args)
    if name == "mean":
        return TokenMean(**{"entries": entries, "width": config.width} | config.args)
    if name == "counts":
        return TokenCounts(**{"entries": entries} | config.args)
    raise MmclError(f"text tower 'bag:{name}': there is no such bag; use bag:ngrams, bag:mean or bag:counts")
