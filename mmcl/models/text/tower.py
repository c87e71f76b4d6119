"""The tower that embeds texts by a transformers encoder."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.data.processors.text import TextProcessor
from mmcl.models.outputs import own_vector, states_of_layers
from mmcl.models.text.dropout import speed_up_dropout
from mmcl.models.text.limits import position_padding
from mmcl.models.text.packed.families import describe
from mmcl.models.text.padding import Padding, measure_padding
from mmcl.models.text.pooling import pool, reads_layers, split_pooling
from mmcl.models.text.token_layers import TokenLayers
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.tower import Tower
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")

FULL_TABLE = 0.9
"""The least part of a table of embeddings that its own tokenizer uses: tables are padded by a few percent."""
OWN_VECTOR = ("pooled", "pooler")
"""Poolings of the model itself: ``pooler``, a text encoder's dense layer and tanh on its first token; ``pooled``,
whatever one vector a text the model gives, such as CLIP's projection."""


class TextTower(Tower):
    """Tokens to features.

    Args:
        net: a transformers model.
        processor: of its texts: says which token is padding and on which side it stands, and how long texts are.
        pooling: as below.
        padding: how the network reads it; what is not known is measured.
        token_weights: of the pooling, if it has any.
        layers: between the states and the pooling, see :data:`~mmcl.models.text.token_layers.TOKEN_LAYERS`.

    Attributes:
        pooling: how token states become one vector, see :func:`mmcl.models.text.pooling.pool` and :data:`OWN_VECTOR`.
        padding: how the network reads texts that are shorter than others.
        token_weights: as given.
        token_layers: the layers as modules.

    Raises:
        MmclError: network and tokenizer do not belong together, or the network has no such pooling.
    """

    def __init__(
        self,
        net: Any,
        processor: TextProcessor,
        *,
        pooling: str,
        padding: Padding | None = None,
        token_weights: TokenWeights | None = None,
        layers: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.token_weights = token_weights
        self.token_layers = TokenLayers(int(net.config.hidden_size), layers) if layers else None
        self._check_vocabulary(processor.tokenizer)
        self._padding_id, self._pads_left = processor.padding_id, processor.pads_left
        self._longest = processor.max_tokens
        self.padding = padding = padding or Padding()
        # A decoder would keep every layer's keys and values, for a next token that nobody asks for.
        takes = inspect.signature(net.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in takes else {}
        speed_up_dropout(net)
        self.set_pooling(pooling)
        if padding.mixes is None:
            known = bool(padding.length) or (describe(net) is not None and not layers)
            self.padding = replace(padding, mixes=False)
            if not known:
                entries = self._vocabulary(processor.tokenizer)
                self.padding = measure_padding(self, net, padding, self._padding_id, self._longest, entries)
        # A decoder behind an encoder reads the ids themselves, shifted.
        takes_embeddings = "inputs_embeds" in takes and "decoder_input_ids" not in takes
        self._takes_embeddings = takes_embeddings and not padding.length and self.padding.least_tokens == 1

    def set_pooling(self, pooling: str) -> None:
        """Pool in another way from now on.

        Raises:
            MmclError: there is no such pooling, or the model has no pooler.
        """
        pooler = getattr(self.net, "pooler", None)
        if self.token_layers is not None and (pooling in OWN_VECTOR or reads_layers(pooling)):
            raise MmclError(f"model.text.pooling: '{pooling}' knows nothing of the layers behind the network; use mean")
        if pooling == "pooler" and not isinstance(pooler, nn.Module):
            raise MmclError(f"model.text.pooling: a {type(self.net).__name__} has no pooler; use cls or mean")
        if isinstance(pooler, nn.Module):  # unused, no gradient reaches it, which data parallelism would wait for
            pooler.requires_grad_(pooling in OWN_VECTOR)
        self.pooling = pooling
        if pooling in OWN_VECTOR:
            self.width = self._measure_width()
        else:
            width = self.net.config.hidden_size if self.token_layers is None else self.token_layers.width
            self.width = len(split_pooling(pooling)) * int(width)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        skipped: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """(N, width) features.

        Args:
            input_ids: (N, L) token ids.
            attention_mask: (N, L), 1 for tokens and 0 for padding; None where there is no padding, which is faster.
            skipped: (N,) number of leading tokens that the pooling leaves out, see
                :meth:`mmcl.data.processors.text.TextProcessor.skipped`.
            embeddings: (N, L, hidden size) of the tokens, where :meth:`embed_tokens` gave them.
        """
        input_ids, attention_mask = self._fill_up(input_ids, attention_mask)
        options = {"output_hidden_states": True} if self.reads_layers else {}
        tokens = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        if embeddings is not None and (padding := position_padding(self.net)) is not None:
            read = input_ids != padding  # as these models count where they are given the ids
            tokens["position_ids"] = read.cumsum(dim=1) * read + padding
        output = self._run(attention_mask, **tokens, **options)
        if self.pooling in OWN_VECTOR:
            return own_vector(output)
        layers = states_of_layers(output)
        weights = None if self.token_weights is None else self.token_weights(input_ids)
        states = output.last_hidden_state
        if self.token_layers is not None:
            states = self.token_layers(states, attention_mask, layers)
        return pool(states, attention_mask, self.pooling, skipped=skipped, layers=layers, weights=weights)

    def states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, L, hidden size) states of the last layer, for losses over tokens."""
        states: Tensor = self._run(attention_mask, input_ids=input_ids).last_hidden_state
        return states

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table of token embeddings, (vocabulary, hidden size), to which token logits may be tied."""
        table: nn.Embedding = self.net.get_input_embeddings()
        return table

    @property
    def reads_layers(self) -> bool:
        """Whether it needs the states of other layers of the network than the last."""
        return reads_layers(self.pooling) or (self.token_layers is not None and self.token_layers.reads_layers)

    @property
    def table_gradients(self) -> bool:
        """Whether every forward pass has a gradient of the full embedding table, which :meth:`embed_tokens` spares."""
        return torch.is_grad_enabled() and not self._takes_embeddings

    def embed_tokens(self, tokens: Sequence[Tensor]) -> list[Tensor] | None:
        """(N, L, hidden size) embeddings of each of several batches of (N, L) token ids, looked up at once.

        So the table has one gradient rather than one a batch; None where there is no gradient to spare.
        """
        if not (self._takes_embeddings and torch.is_grad_enabled() and self.word_embeddings.weight.requires_grad):
            return None
        flat = self.word_embeddings(torch.cat([ids.flatten() for ids in tokens]))
        parts = flat.split([ids.numel() for ids in tokens])
        return [part.view(*ids.shape, -1) for part, ids in zip(parts, tokens, strict=True)]

    def _run(self, attention_mask: Tensor | None, **inputs: Any) -> Any:
        return self.net(**inputs, attention_mask=attention_mask if self.padding.masked else None, **self._options)

    def _fill_up(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """With padding, on the tokenizer's side, for a model that reads it."""
        length = self.padding.length
        missing = max(0, max(length, self.padding.least_tokens) - input_ids.shape[1])
        if not (missing or length):
            return input_ids, attention_mask
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = F.pad(input_ids, (0, missing), value=self._padding_id), F.pad(mask, (0, missing))
        if length and self._pads_left:
            places = torch.arange(ids.shape[1], device=ids.device) + mask.sum(dim=1, keepdim=True)
            ids, mask = (rows.gather(1, places % ids.shape[1]) for rows in (ids, mask))
        return ids, mask

    def _check_vocabulary(self, tokenizer: Any) -> None:
        entries, rows = len(tokenizer), self._vocabulary(tokenizer)
        weighted = entries if self.token_weights is None else len(self.token_weights.log_weight)
        if weighted != entries:
            raise MmclError(f"the tokenizer has {entries} entries but {weighted} have weights")
        where = f"{tokenizer.name_or_path}: " if tokenizer.name_or_path else ""
        found = f"{where}the tokenizer has {entries} entries but the model"
        if entries > rows:
            raise MmclError(f"{found} only {rows}; they do not belong together")
        if (last := max(tokenizer.get_vocab().values(), default=0)) >= rows:
            raise MmclError(f"{where}the tokenizer gives id {last} but the model has {rows} tokens; take a fresh copy")
        if entries < FULL_TABLE * rows:  # nothing but its vectors would tell that it is another model's
            log.warning("%s %d; check that they belong together", found, rows)

    def _vocabulary(self, tokenizer: Any) -> int:
        """How many tokens the network knows."""
        return int(self.net.config.vocab_size)

    @torch.no_grad()
    def _measure_width(self) -> int:
        """Ask the network itself: libraries disagree about the attribute that holds the width after projection."""
        training = self.net.training
        self.net.eval()
        ids = torch.zeros(1, min(self._longest, 8), dtype=torch.int64)
        width = self(ids, torch.ones_like(ids)).shape[1]
        self.net.train(training)
        return int(width)
