"""The text half of an open_clip model, with open_clip's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from mmcl.data.identity import stable_hash
from mmcl.data.processors.tokenize import forget_limits, pads_left
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError
from mmcl.runtime.quiet import quiet


class OpenClipTextTower(TextTower):
    """Tokens to features by an open_clip text half, its projection included.

    Where nothing after the end token can change a text's features (a causal transformer read at the end token, or a
    transformers model with its mask), a batch is padded to its longest text and not to the whole context of 77.

    Args:
        net: the text half of an ``open_clip.CustomTextCLIP``.
        tokenize: open_clip's tokenizer object.
        spec: name, and config (embed_dim, text_cfg, quick_gelu) of the net.
        max_tokens: longer texts are cut here; the net's context length if absent.

    Attributes:
        spec: as given.
    """

    def __init__(
        self,
        net: Any,
        tokenize: Any,
        spec: dict[str, Any],
        *,
        max_tokens: int | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
    ) -> None:
        context = int(net.context_length if spec["config"]["text_cfg"].get("hf_model_name") is None else 0)
        context = context or int(spec["config"]["text_cfg"].get("context_length", 77))
        if max_tokens is not None and max_tokens > context:
            raise MmclError(f"model.text.max_tokens is {max_tokens}, but '{spec['name']}' reads at most {context}")
        self._tokenize = tokenize
        self.spec = spec
        inner = getattr(tokenize, "tokenizer", tokenize)  # the transformers tokenizer, where there is one
        limit = max_tokens or context
        if hasattr(net, "attn_mask"):
            net.transformer.register_forward_pre_hook(_shorten_mask, with_kwargs=True)
        # What pads on the left moves a text's positions, as that library does.
        padded = 0 if _ends_early(net) and not pads_left(inner) else context
        super().__init__(
            net,
            inner,
            pooling="pooled",
            max_tokens=limit,
            prompts=prompts,
            default_prompt=default_prompt,
            padded=padded,
            mixes_padding=False,
        )

    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else."""
        forget_limits(self.tokenizer)
        settings = self.spec["config"]["text_cfg"]
        wanted = [settings.get(name) for name in ("tokenizer_kwargs", "tokenizer_mode", "context_length")]
        inner = super().key() if self.tokenizer is not self._tokenize else f"open_clip-{self.max_tokens}"
        return f"{stable_hash(json.dumps(wanted, sort_keys=True)):x}-{inner}"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        skipped: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """(N, width) features of (N, L) token ids; the net knows padding by its id, so the mask is not read."""
        features = self.net(self._fill_up(input_ids, attention_mask)[0])
        return features[0] if isinstance(features, tuple) else features

    def _check_vocabulary(self) -> None:
        """open_clip's configs pair the two, and some tokenizers have entries that no text gives."""

    @property
    def padding_id(self) -> int:
        return 0 if self.tokenizer is self._tokenize else int(self.tokenizer.pad_token_id or 0)

    def _encode(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """open_clip's tokenizers pad to a length: the padding is taken off again, and put back by ``collate``."""
        rows = self._unpadded(texts, self.max_tokens) if texts else []
        cut = np.array([len(row) == self.max_tokens for row in rows], dtype=bool)
        if cut.any():
            longer = self._unpadded([texts[position] for position in np.flatnonzero(cut).tolist()], self.max_tokens + 1)
            cut[cut] = [len(row) > self.max_tokens for row in longer]
        return rows, cut

    def _unpadded(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        with quiet():
            ids = self._tokenize(list(texts), context_length=length).numpy().astype(np.int32)
        # Some tokenizers pad with the end token: the first of these is the text's own.
        own = int(self.padding_id == getattr(self.tokenizer, "eos_token_id", None))
        read = ids != self.padding_id
        ends = np.where(read.any(axis=1), length - read[:, ::-1].argmax(axis=1), 0)
        starts = read.argmax(axis=1)  # behind what is padded on the left
        return [row[start : max(1, end + own)] for row, start, end in zip(ids, starts, ends, strict=True)]


def _ends_early(net: Any) -> bool:
    """Whether the features of a text do not depend on what follows its end token."""
    if not hasattr(net, "pool_type"):
        return True  # a transformers model: padding is masked
    return net.attn_mask is not None and net.cls_emb is None and net.pool_type in ("first", "argmax", "eos")


def _shorten_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """open_clip passes the causal mask of its whole context, however short the texts are."""
    mask, length = kwargs.get("attn_mask"), args[0].shape[1]
    if mask is not None and mask.ndim == 2:
        kwargs["attn_mask"] = mask[:length, :length]
    return args, kwargs
