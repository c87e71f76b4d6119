"""Text towers of open_clip, from their configs: new ones, and those that a model folder describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmcl.data.processors.open_clip_text import OpenClipTextProcessor
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.tokenize import check_tokenizer, reading_tokenizer
from mmcl.formats.open_clip.nets import text_net
from mmcl.models.text.open_clip import OpenClipTextTower, context_length
from mmcl.runtime.errors import MmclError
from mmcl.runtime.quiet import quiet


def create_text_tower(
    name: str,
    config: Mapping[str, Any],
    net: nn.Module | None = None,
    folder: Path | None = None,
    max_tokens: int | None = None,
) -> tuple[OpenClipTextProcessor, OpenClipTextTower]:
    """The tower of ``config`` (embed_dim, text_cfg, quick_gelu), around ``net`` or with fresh weights, behind the
    processor of its texts.

    Args:
        name: for messages.
        config: of the half.
        net: the half, if it is built already.
        folder: where the tokenizer's files may be; from the hub if they are not there.
        max_tokens: longer texts are cut here; the net's context length if absent.

    Raises:
        MmclError: the tokenizer cannot be had, or the net reads fewer than ``max_tokens``.
    """
    tokenizer = _tokenizer(name, config["text_cfg"], folder)
    net = text_net(config) if net is None else net
    spec = {"library": "open_clip", "name": name, "config": dict(config)}
    hf = getattr(net, "config", None)
    if hf is not None:  # a transformers text model: with its own config no hub is needed to rebuild it
        spec["config"] = {**config, "text_cfg": {**config["text_cfg"], "hf_config": hf.to_diff_dict()}}
    return _around(net, tokenizer, spec, max_tokens)


def rebuild_text_tower(spec: dict[str, Any], folder: Path) -> tuple[OpenClipTextProcessor, OpenClipTextTower]:
    """Of what :func:`describe_text_tower` gave, the processor and the tower, with fresh weights.

    A transformers tokenizer is read from ``folder``.
    """
    tokenizer = _tokenizer(spec["name"], spec["config"]["text_cfg"], folder)
    kept = {key: spec[key] for key in ("library", "name", "config")}
    prompts = {key: spec.get(key) for key in ("prompts", "default_prompt")}
    return _around(text_net(spec["config"]), tokenizer, kept, spec["max_tokens"], **prompts)


def describe_text_tower(processor: TextProcessor, tower: OpenClipTextTower) -> dict[str, Any]:
    """What rebuilds both, weights and tokenizer files apart."""
    prompts = {"prompts": processor.prompts, "default_prompt": processor.default_prompt}
    return {**tower.spec, "max_tokens": processor.max_tokens, **prompts}


def _around(
    net: Any, tokenizer: Any, spec: dict[str, Any], max_tokens: int | None, **prompts: Any
) -> tuple[OpenClipTextProcessor, OpenClipTextTower]:
    settings = spec["config"]["text_cfg"]
    context = context_length(net, settings)
    if max_tokens is not None and max_tokens > context:
        raise MmclError(f"model.text.max_tokens is {max_tokens}, but '{spec['name']}' reads at most {context}")
    processor = OpenClipTextProcessor(tokenizer, settings, max_tokens=max_tokens or context, **prompts)
    return processor, OpenClipTextTower(net, processor, spec)


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
