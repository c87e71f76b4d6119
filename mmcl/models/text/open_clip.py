"""The text half of an open_clip model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmcl.data.processors.text import TextProcessor
from mmcl.models.text.padding import Padding
from mmcl.models.text.tower import TextTower


class OpenClipTextTower(TextTower):
    """Tokens to features by an open_clip text half, its projection included.

    Where nothing after the end token can change a text's features (a causal transformer read at the end token, or a
    transformers model with its mask), a batch is padded to its longest text and not to the whole context of 77.

    Args:
        net: the text half of an ``open_clip.CustomTextCLIP``.
        processor: of its texts.
        spec: name, and config (embed_dim, text_cfg, quick_gelu) of the net.

    Attributes:
        spec: as given.
    """

    def __init__(self, net: Any, processor: TextProcessor, spec: dict[str, Any]) -> None:
        self.spec = spec
        if hasattr(net, "attn_mask"):
            net.transformer.register_forward_pre_hook(_shorten_mask, with_kwargs=True)
        # What pads on the left moves a text's positions, as that library does.
        early = _ends_early(net) and not processor.pads_left
        length = 0 if early else context_length(net, spec["config"]["text_cfg"])
        super().__init__(net, processor, pooling="pooled", padding=Padding(length, mixes=False))

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

    def _check_vocabulary(self, tokenizer: Any) -> None:
        """open_clip's configs pair the two, and some tokenizers have entries that no text gives."""


def context_length(net: Any, settings: Mapping[str, Any]) -> int:
    """How many tokens an open_clip text half reads at most, by the net itself or its ``text_cfg``."""
    own = int(net.context_length if settings.get("hf_model_name") is None else 0)
    return own or int(settings.get("context_length", 77))


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
