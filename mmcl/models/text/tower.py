"""The tower that embeds texts by a transformers encoder."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.data.augment.texts import framing_of
from mmcl.data.cache.tokens import pad
from mmcl.data.identity import stable_hash
from mmcl.data.processors import tokenize
from mmcl.models.outputs import own_vector
from mmcl.models.text.dropout import speed_up_dropout
from mmcl.models.text.limits import position_padding
from mmcl.models.text.packed_bert import packs
from mmcl.models.text.pooling import pool, reads_layers, split_pooling
from mmcl.models.text.token_weights import TokenWeights
from mmcl.runtime.errors import MmclError, nearest

log = logging.getLogger("mmcl")

FULL_TABLE = 0.9
"""The least part of a table of embeddings that its own tokenizer uses: tables are padded by a few percent."""
MIXED = 2e-5
"""The least part of its largest feature by which padding that is mixed in changes a text: rounding changes less."""
OWN_VECTOR = ("pooled", "pooler")
"""Poolings of the model itself: ``pooler``, a text encoder's dense layer and tanh on its first token; ``pooled``,
whatever one vector a text the model gives, such as CLIP's projection."""


class TextTower(nn.Module):
    """Tokens to features.

    Attributes:
        width: number of features.
        max_tokens: longer texts are cut here, special tokens included.
        pooling: how token states become one vector, see :func:`mmcl.models.text.pooling.pool` and :data:`OWN_VECTOR`.
        prompts: name to the words put before a text.
        default_prompt: name of the prompt of texts for which none is named.
        include_prompt: whether the prompt's tokens enter the pooling.
        lowercase: whether texts are lower-cased before they are tokenized.
        padded: the length to which ``forward`` pads every text for a model that reads padding, as SigLIP does, whatever
            ``max_tokens``: such a model reads the last of all its positions; 0 for others. It pads on the tokenizer's
            side.
        mixes_padding: whether padding changes a text's features although it is masked, as it does where a network mixes
            tokens by convolutions or a Fourier transform: such texts are to be batched by equal length.
        least_tokens: shorter texts are padded to so many, fewer of which the network cannot read (Funnel's attention).
    """

    modality: ClassVar[str] = "text"
    net: Any  # a transformers model, whose type depends on the name

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        *,
        pooling: str,
        max_tokens: int,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
        include_prompt: bool = True,
        lowercase: bool = False,
        padded: int = 0,
        masked: bool = True,
        mixes_padding: bool | None = None,
        least_tokens: int = 1,
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__()
        if type(max_tokens) is not int or max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens!r:.60}, and no number from 1 up")
        special = tokenizer.num_special_tokens_to_add() if hasattr(tokenizer, "num_special_tokens_to_add") else 0
        if max_tokens <= special:  # all texts would be one
            raise MmclError(
                f"texts are cut at {max_tokens} tokens, of which {special} are special: nothing of them is left; set a "
                "larger max_tokens, or max_seq_length or model_max_length of the model's settings"
            )
        self.net = net
        self.token_weights = token_weights
        self.tokenizer = tokenizer
        self._check_vocabulary()
        tokenize.forget_limits(tokenizer)
        self.lowercase = lowercase
        self._lowers_first = lowercase and not tokenize.fold_case(tokenizer)
        self.max_tokens = max_tokens
        self.prompts: dict[str, str] = {}
        self.set_prompts(prompts or {}, default_prompt)
        self.include_prompt = include_prompt
        self.padded = padded
        self.masked = masked
        # A decoder would keep every layer's keys and values, for a next token that nobody asks for.
        takes = inspect.signature(net.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in takes else {}
        self._takes_embeddings = "inputs_embeds" in takes and not padded
        speed_up_dropout(net)
        self.mixes_padding, self.least_tokens = bool(mixes_padding), least_tokens
        self.set_pooling(pooling)
        if mixes_padding is None and not padded and not packs(net):
            self._measure_padding()
        self._takes_embeddings &= self.least_tokens == 1

    def set_pooling(self, pooling: str) -> None:
        """Pool in another way from now on.

        Raises:
            MmclError: there is no such pooling, or the model has no pooler.
        """
        pooler = getattr(self.net, "pooler", None)
        if pooling == "pooler" and not isinstance(pooler, nn.Module):
            raise MmclError(f"model.text.pooling: a {type(self.net).__name__} has no pooler; use cls or mean")
        if isinstance(pooler, nn.Module):  # unused, no gradient reaches it, which data parallelism would wait for
            pooler.requires_grad_(pooling in OWN_VECTOR)
        self.pooling = pooling
        if pooling in OWN_VECTOR:
            self.width = self._measure_width()
        else:
            self.width = len(split_pooling(pooling)) * int(self.net.config.hidden_size)

    def set_prompts(self, prompts: dict[str, str], default: str | None = None) -> None:
        """Have other prompts from now on.

        Args:
            prompts: name to the words put before a text.
            default: name of the prompt of texts for which none is named.

        Raises:
            MmclError: the default is none of them.
            ValueError: one is no text.
        """
        if not isinstance(prompts, dict) or not all(isinstance(words, str) for words in prompts.values()):
            raise ValueError("prompts are no texts by name")
        if default is not None and default not in prompts:
            raise MmclError(f"the default prompt '{default}' is none of the prompts; {nearest(default, prompts)}")
        self.prompts, self.default_prompt = dict(prompts), default

    def replace_prompts(self, prompts: dict[str, str]) -> None:
        """Have other prompts; the default one stays the default if they have its name."""
        self.set_prompts(prompts, self.default_prompt if self.default_prompt in prompts else None)

    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else for a text without a prompt."""
        parts = [tokenize.content_key(self.tokenizer), str(self.max_tokens)]
        parts += ["lower"] if self._lowers_first else []
        parts += [f"{stable_hash(text):x}"] if (text := self.prompt_text()) else []
        return "-".join(parts)

    def prompt_text(self, prompt: str | None = None) -> str:
        """The text that is put before every other.

        Args:
            prompt: name of one of the model's prompts; the default one, if there is one, if absent; "" for none.

        Raises:
            MmclError: the model has no prompt of that name.
        """
        name = self.default_prompt if prompt is None else prompt
        if not name:
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "no prompts at all"
            raise MmclError(f"prompt '{name}': the model has no prompt of that name; it has: {known}")
        return self.prompts[name]

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], int]:
        """Token ids of each text, int32, cut at ``max_tokens``; and how many texts were cut.

        Args:
            texts: of any content; one without any token reads as padding.
            prompt: as for :meth:`prompt_text`.

        Raises:
            MmclError: ``prompt`` is not the name of one of the model's prompts, or something is no text.
        """
        ids, cut = self.tokenize_marked(texts, prompt)
        return ids, int(cut.sum())

    def tokenize_marked(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        """As :meth:`tokenize`, but with (N,) bool: which of the texts were cut."""
        valid = tokenize.valid_texts(texts, self.prompt_text(prompt))
        ids, cut = self._encode([text.lower() for text in valid] if self._lowers_first else valid)
        return [row if len(row) else np.array([self.padding_id], dtype=np.int32) for row in ids], cut

    def identities(
        self, texts: Sequence[str], prompt: str | None = None, tokens: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """(N,) int64, equal for texts that this tower cannot tell apart: their own tokens are the same, as far as they
        are read behind the prompt. The prompt itself does not count, so that a query can equal a passage.

        Args:
            texts: N of them.
            prompt: as for :meth:`prompt_text`.
            tokens: what :meth:`tokenize` gave for the same texts and prompt, if it was asked already.

        Raises:
            MmclError: as :meth:`tokenize`.
        """
        before = self.prompt_text(prompt)
        if before or tokens is None:
            tokens, _ = self.tokenize(texts, "")
        start, end = framing_of(lambda some: self.tokenize(some, ""))
        length = self.max_tokens - start - end
        if before and getattr(self.tokenizer, "truncation_side", "right") == "right":
            (prompt_tokens,), _ = self.tokenize([before], "")
            length -= len(prompt_tokens) - start - end
        own = (ids[start : len(ids) - end][: max(length, 0)] for ids in tokens)
        return np.fromiter((stable_hash(ids.astype(np.int32).tobytes()) for ids in own), np.int64, count=len(texts))

    def skipped(self, prompt: str | None = None) -> int:
        """How many leading tokens :meth:`forward` is to leave out of the pooling of texts behind ``prompt``.

        They are the prompt's and the special ones before it; 0 for a model that pools these as well.
        """
        if self.include_prompt or not (text := self.prompt_text(prompt)):
            return 0
        (ids,), _ = self.tokenize([text], prompt="")
        return len(ids) - int(ids[-1] in self.tokenizer.all_special_ids)

    def _encode(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        return tokenize.token_ids(self.tokenizer, texts, self.max_tokens)

    def collate(self, tokens: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Pad to the longest: ``input_ids`` and ``attention_mask``, both int64 (N, L)."""
        ids, mask = pad(tokens, self.padding_id)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

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
            skipped: (N,) number of leading tokens that the pooling leaves out, see :meth:`skipped`.
            embeddings: (N, L, hidden size) of the tokens, where :meth:`embed_tokens` gave them.
        """
        input_ids, attention_mask = self._fill_up(input_ids, attention_mask)
        options = {"output_hidden_states": True} if reads_layers(self.pooling) else {}
        tokens = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        if embeddings is not None and (padding := position_padding(self.net)) is not None:
            read = input_ids != padding  # as these models count where they are given the ids
            tokens["position_ids"] = read.cumsum(dim=1) * read + padding
        output = self._run(attention_mask, **tokens, **options)
        if self.pooling in OWN_VECTOR:
            return own_vector(output)
        layers = output.hidden_states or ()
        weights = None if self.token_weights is None else self.token_weights(input_ids)
        states = output.last_hidden_state
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
        return self.net(**inputs, attention_mask=attention_mask if self.masked else None, **self._options)

    def _fill_up(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """With padding, on the tokenizer's side, for a model that reads it."""
        missing = max(0, max(self.padded, self.least_tokens) - input_ids.shape[1])
        if not (missing or self.padded):
            return input_ids, attention_mask
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = F.pad(input_ids, (0, missing), value=self.padding_id), F.pad(mask, (0, missing))
        if self.padded and tokenize.pads_left(self.tokenizer):
            places = torch.arange(ids.shape[1], device=ids.device) + mask.sum(dim=1, keepdim=True)
            ids, mask = (rows.gather(1, places % ids.shape[1]) for rows in (ids, mask))
        return ids, mask

    @property
    def padding_id(self) -> int:
        """The token that texts are filled up with."""
        return int(self.tokenizer.pad_token_id or 0)

    def _check_vocabulary(self) -> None:
        weighted = len(self.tokenizer) if self.token_weights is None else len(self.token_weights.log_weight)
        if weighted != len(self.tokenizer):
            raise MmclError(f"the tokenizer has {len(self.tokenizer)} entries but {weighted} have weights")
        entries, rows = len(self.tokenizer), int(self.net.config.vocab_size)
        where = f"{self.tokenizer.name_or_path}: " if self.tokenizer.name_or_path else ""
        found = f"{where}the tokenizer has {entries} entries but the model"
        if entries > rows:
            raise MmclError(f"{found} only {rows}; they do not belong together")
        if (last := max(self.tokenizer.get_vocab().values(), default=0)) >= rows:
            raise MmclError(f"{where}the tokenizer gives id {last} but the model has {rows} tokens; take a fresh copy")
        if entries < FULL_TABLE * rows:  # nothing but its vectors would tell that it is another model's
            log.warning("%s %d; check that they belong together", found, rows)

    @torch.no_grad()
    def _measure_width(self) -> int:
        """Ask the network itself: libraries disagree about the attribute that holds the width after projection."""
        training = self.net.training
        self.net.eval()
        ids = torch.zeros(1, min(self.max_tokens, 8), dtype=torch.int64)
        width = self(ids, torch.ones_like(ids)).shape[1]
        self.net.train(training)
        return int(width)

    @torch.no_grad()
    def _measure_padding(self) -> None:
        """Ask the network itself how few tokens it reads, and whether a text has other features beside a longer one.

        Raises:
            MmclError: it gives no features for texts.
        """
        training = self.net.training
        self.net.eval()
        tokens = torch.arange(10, 10 + int(self.net.config.vocab_size)) % int(self.net.config.vocab_size)
        long = tokens[tokens != self.padding_id][None, : max(2, min(self.max_tokens, 40))]
        with torch.random.fork_rng(devices=[]):
            self.least_tokens = self._fewest(long)
            short = max(self.least_tokens, long.shape[1] // 8)
            mask = torch.ones_like(long)
            mask[:, short:] = 0
            padded = torch.where(mask == 1, long, self.padding_id)
            beside = self(torch.cat([long, padded]), torch.cat([torch.ones_like(mask), mask]))[1]
            alone = self(long[:, :short])[0]
        self.net.train(training)
        self.mixes_padding = bool((beside - alone).abs().max() > MIXED * alone.abs().max())

    def _fewest(self, tokens: Tensor) -> int:
        """The fewest of (1, L) tokens from which on the network reads every number of them."""

        def fails(count: int) -> Exception | None:
            try:
                self(tokens[:, :count])
            except Exception as error:  # whatever a network meets that wants images, or boxes, beside the text
                return error
            return None

        if not any(fails(count) for count in (1, 2, 4)):
            return 1
        most = min(24, tokens.shape[1])
        if (error := fails(most)) is not None:
            reason, kind = " ".join(str(error).split())[:200], type(self.net).__name__
            raise MmclError(f"a {kind} gives no features for texts alone: {reason}")
        return next((count + 1 for count in range(most - 1, 0, -1) if fails(count)), 1)
