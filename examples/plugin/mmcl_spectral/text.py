"""A text tower of averaged token vectors: ``bag:64`` has vectors of 64 dimensions."""

import torch
from torch import nn

from mmcl.config.model import TextTowerConfig


class Bag(nn.Module):
    """The mean of the vectors of a text's tokens, each with a weight that is learned."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)
        self.weights = nn.Embedding(vocabulary, 1)

    def forward(self, input_ids, attention_mask):
        weights = self.weights(input_ids).squeeze(2).masked_fill(attention_mask == 0, -torch.inf).softmax(dim=1)
        return torch.einsum("nl,nld->nd", weights, self.vectors(input_ids))


def bag_net(name: str, config: TextTowerConfig, vocabulary: int) -> nn.Module:
    """The network of ``bag:NAME``: the weighted mean of token vectors.

    Args:
        name: dimensions of a token's vector.
        config: of the tower.
        vocabulary: number of tokens.
    """
    return Bag(vocabulary, int(name))
