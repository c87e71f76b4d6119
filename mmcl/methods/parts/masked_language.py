"""Masked language modelling beside another loss (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmcl.config.section import Positive, Section
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import Transform
from mmcl.data.identity import mix, uniforms
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError

MASK_STREAM = 0x313A  # of a row's random numbers, the first of three that hide its tokens
MASKED, SWAPPED = 0.8, 0.1  # of the tokens to predict; what remains is shown as it is


class MlmConfig(Section):
    """Masked language modelling beside the contrast, as in the SimCSE paper (section 3.2)."""

    weight: Positive = 0.1
    """Of its loss; the contrastive one has weight 1."""
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the tokens to predict."""


class MaskedLanguage(nn.Module):
    """Predicts hidden tokens from a tower's states: a dense layer, GELU, layer normalisation, and logits tied to the
    tower's word embeddings.

    Special tokens are never hidden. A tokenizer without a mask token lends its token for the unknown. The layers start
    anew: those of a model's own pretraining are not taken over.

    Args:
        embedder: of the texts. Its tower is not a part of this module, but is handed to :meth:`forward`.
        probability: share of the tokens to predict.

    Raises:
        MmclError: the tower is frozen, or has no word embeddings, or its tokenizer nothing to hide a token by.
    """

    special: Tensor
    ordinary: Tensor

    def __init__(self, embedder: TextEmbedder, probability: float) -> None:
        super().__init__()
        tower = embedder.tower
        if embedder.frozen:
            raise MmclError("method.mlm teaches the text tower, which is frozen; leave it or model.text.frozen out")
        tokenizer, table = embedder.processor.tokenizer, getattr(tower, "word_embeddings", None)
        mask = getattr(tokenizer, "mask_token_id", None)
        mask = getattr(tokenizer, "unk_token_id", None) if mask is None else mask
        if table is None or mask is None:
            lack = "table of word embeddings" if table is None else "token to stand for a hidden one"
            raise MmclError(f"method.mlm: the text model has no {lack}; leave method.mlm out")
        self.probability = probability
        self.mask = int(mask)
        special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        tokens = torch.arange(len(tokenizer))
        self.register_buffer("special", special, persistent=False)
        self.register_buffer("ordinary", tokens[~torch.isin(tokens, special)], persistent=False)
        width = int(tower.net.config.hidden_size)
        self.dense = nn.Linear(width, table.embedding_dim)
        self.norm = nn.LayerNorm(table.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def hide(self, input_ids: Tensor, attention_mask: Tensor | None, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) token ids of which some are hidden, and where these stand, (N, L) bool.

        Of the tokens to predict 80 % are masked, 10 % swapped for any ordinary token and 10 % shown, as BERT does. What
        becomes of a row depends on its own seed and tokens alone.
        """
        length = input_ids.shape[1]
        chance, how, which = (uniforms(seeds, length, MASK_STREAM + number) for number in range(3))
        hidden = (chance < self.probability) & ~torch.isin(input_ids, self.special)
        if attention_mask is not None:  # where the padding is an ordinary token
            hidden &= attention_mask.bool()
        drawn = self.ordinary[(which * len(self.ordinary)).long()]
        shown = torch.where(hidden & (how < MASKED), self.mask, input_ids)
        return torch.where(hidden & (how >= MASKED) & (how < MASKED + SWAPPED), drawn, shown), hidden

    def hiding(self, number: int) -> Transform:
        """The change of texts into those with hidden tokens, with random numbers of its own.

        The changed inputs are those that :meth:`forward` takes.
        """

        def hide(inputs: Inputs, seeds: Tensor, draw: int, size: int | None) -> Inputs:
            mask = inputs.get("attention_mask")
            shown, hidden = self.hide(inputs["input_ids"], mask, mix(seeds, number))
            changed = {"input_ids": shown, "hidden": hidden, "tokens": inputs["input_ids"]}
            return changed if mask is None else changed | {"attention_mask": mask}

        return hide

    def forward(
        self, tower: TextTower, input_ids: Tensor, hidden: Tensor, tokens: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """(N, 2): each row's summed cross-entropy, and how many tokens it had to predict.

        Args:
            tower: of the texts.
            input_ids: (N, L) tokens of which some are hidden.
            hidden: (N, L) bool, which.
            tokens: (N, L) as they are.
            attention_mask: of both.
        """
        states = tower.states(input_ids, attention_mask)[hidden]  # (T, width), of the T hidden tokens
        logits = F.linear(self.norm(F.gelu(self.dense(states))), tower.word_embeddings.weight, self.bias)
        losses = F.cross_entropy(logits.float(), tokens[hidden], reduction="none")
        rows = hidden.nonzero()[:, 0]
        sums = losses.new_zeros(len(hidden)).index_add(0, rows, losses)
        return torch.stack([sums, hidden.sum(dim=1).to(losses.dtype)], dim=1)
