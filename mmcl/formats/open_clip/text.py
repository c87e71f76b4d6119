"""The text half of an open_clip model, with open_clip's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mmcl.data.identity import stable_hash
from mmcl.formats.open_clip.nets import quiet, text_net
from mmcl.models.text.tokenize import check_tokenizer, forget_limits, pads_left, reading_tokenizer
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError


class OpenClipTextTower(TextTower):
    """Tokens to features by an open_clip text half, its projection included.

    Where nothing after the end token can change a text's features (a causal transformer read at the end token, or a
    transformers model with its mask), a batch is padded to its longest text and not to the whole context of 77.

    Args:
        net: what ``text_net`` builds.
        tokenize: open_clip's tokenizer object.
        spec: name, and config (embed_dim, text_cfg, quick_gelu) of the net.
        max_tokens: longer texts are cut here; the net's context length if absent.
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
        self._spec = spec
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

    @classmethod
    def create(
        cls,
        name: str,
        config: Mapping[str, Any],
        net: nn.Module | None = None,
        folder: Path | None = None,
        max_tokens: int | None = None,
    ) -> OpenClipTextTower:
        """The tower of ``config`` (embed_dim, text_cfg, quick_gelu), around ``net`` or with fresh weights.

        Args:
            name: for messages.
            config: of the half.
            net: the half, if it is built already.
            folder: where the tokenizer's files may be; from the hub if they are not there.
            max_tokens: see the class.

        Raises:
            MmclError: the tokenizer cannot be had.
        """
        tokenizer = _tokenizer(name, config["text_cfg"], folder)
        net = text_net(config) if net is None else net
        spec = {"library": "open_clip", "name": name, "config": dict(config)}
        hf = getattr(net, "config", None)
        if hf is not None:  # a transformers text model: with its own config no hub is needed to rebuild it
            spec["config"] = {**config, "text_cfg": {**config["text_cfg"], "hf_config": hf.to_diff_dict()}}
        return cls(net, tokenizer, spec, max_tokens=max_tokens)

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> OpenClipTextTower:
        """Rebuild what ``spec`` describes, with fresh weights; a transformers tokenizer is read from ``folder``."""
        tokenizer = _tokenizer(spec["name"], spec["config"]["text_cfg"], folder)
        kept = {key: spec[key] for key in ("library", "name", "config")}
        prompts = {key: spec.get(key) for key in ("prompts", "default_prompt")}
        return cls(text_net(spec["config"]), tokenizer, kept, max_tokens=spec["max_tokens"], **prompts)

    def spec(self) -> dict[str, Any]:
        """What rebuilds this tower, weights and tokenizer files apart."""
        prompts = {"prompts": self.prompts, "default_prompt": self.default_prompt}
        return {**self._spec, "max_tokens": self.max_tokens, **prompts}

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files; open_clip's ``SimpleTokenizer`` comes with open_clip and has none."""
        if self.tokenizer is not self._tokenize:
            super().save_tokenizer(folder)

    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else."""
        forget_limits(self.tokenizer)
        settings = self._spec["config"]["text_cfg"]
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


def _tokenizer(name: str, settings: Mapping[str, Any], folder: Path | None) -> Any:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length = settings.get("context_length", 77)
    options = dict(settings.get("tokenizer_kwargs") or {})
    source = settings.get("hf_tokenizer_name")
    if not source:
        return SimpleTokenizer(context_length=length, **options)
    if folder is not None and any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        source = str(folder)
    options["trust_remote_code"] = False  # whatever a folder's config says
    options["tokenizer_mode"] = settings.get("tokenizer_mode")
    with quiet(), reading_tokenizer(f"{name}: its tokenizer '{source}' cannot be had"):
        tokenizer = HFTokenizer(source, context_length=length, **options)
    check_tokenizer(tokenizer.tokenizer, f"{name}: '{source}'")
    return tokenizer
