"""Text towers of open_clip, from their configs: new ones, and those that a model folder describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmcl.data.processors.tokenize import check_tokenizer, reading_tokenizer
from mmcl.formats.open_clip.nets import text_net
from mmcl.models.text.open_clip import OpenClipTextTower
from mmcl.runtime.quiet import quiet


def create_text_tower(
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
        max_tokens: longer texts are cut here; the net's context length if absent.

    Raises:
        MmclError: the tokenizer cannot be had.
    """
    tokenizer = _tokenizer(name, config["text_cfg"], folder)
    net = text_net(config) if net is None else net
    spec = {"library": "open_clip", "name": name, "config": dict(config)}
    hf = getattr(net, "config", None)
    if hf is not None:  # a transformers text model: with its own config no hub is needed to rebuild it
        spec["config"] = {**config, "text_cfg": {**config["text_cfg"], "hf_config": hf.to_diff_dict()}}
    return OpenClipTextTower(net, tokenizer, spec, max_tokens=max_tokens)


def rebuild_text_tower(spec: dict[str, Any], folder: Path) -> OpenClipTextTower:
    """What :func:`describe_text_tower` gave, with fresh weights; a transformers tokenizer is read from ``folder``."""
    tokenizer = _tokenizer(spec["name"], spec["config"]["text_cfg"], folder)
    kept = {key: spec[key] for key in ("library", "name", "config")}
    prompts = {key: spec.get(key) for key in ("prompts", "default_prompt")}
    return OpenClipTextTower(text_net(spec["config"]), tokenizer, kept, max_tokens=spec["max_tokens"], **prompts)


def describe_text_tower(tower: OpenClipTextTower) -> dict[str, Any]:
    """What rebuilds ``tower``, weights and tokenizer files apart."""
    prompts = {"prompts": tower.prompts, "default_prompt": tower.default_prompt}
    return {**tower.spec, "max_tokens": tower.max_tokens, **prompts}


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
