"""open_clip's networks: their configs by name, either half alone, and the weights of a model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.formats.transformers.nets import read_config
from mmcl.runtime.errors import MmclError, first_line, nearest
from mmcl.runtime.quiet import quiet

CAPTIONER = "text_decoder."
"""How the names of CoCa's tensors begin that write captions, and embed nothing."""
QUICK = "-quickgelu"
# Where only one half is wanted, the other is built as small as can be.
_NO_IMAGE = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8}
_NO_TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8}
_MODEL_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_bias", "nonscalar_logit_scale")


def model_config(name: str) -> dict[str, Any]:
    """open_clip's config of the model ``name``: embed_dim, vision_cfg, text_cfg and what else it says.

    Raises:
        MmclError: there is no such model.
    """
    import open_clip

    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise MmclError(f"open_clip has no model '{name}'; {nearest(name, open_clip.list_models())}")
    return config


def tower_config(config: Mapping[str, Any], half: str) -> dict[str, Any]:
    """What of a model's config describes its half ``vision_cfg`` or ``text_cfg``."""
    quick = bool(config.get("quick_gelu", False))
    return {"embed_dim": config["embed_dim"], half: deepcopy(dict(config[half])), "quick_gelu": quick}


def visual_net(config: Mapping[str, Any]) -> Any:
    """The visual half that ``config`` (embed_dim, vision_cfg, quick_gelu) describes, with fresh weights."""
    return build_model({**config, "text_cfg": _NO_TEXT}).visual


def text_net(config: Mapping[str, Any]) -> Any:
    """The text half that ``config`` (embed_dim, text_cfg, quick_gelu) describes, with fresh weights."""
    return build_model({**config, "vision_cfg": _NO_IMAGE}).text


def build_model(config: Mapping[str, Any]) -> Any:
    """A ``CustomTextCLIP`` with fresh weights; of a captioning model (CoCa), the contrastive part.

    A text half that is a transformers model is built from ``text_cfg["hf_config"]`` where that is there, so that no
    hub is asked.

    Raises:
        MmclError: the config has a setting or a value that this open_clip does not know.
    """
    import open_clip

    wanted = {key: deepcopy(value) for key, value in config.items() if key in _MODEL_KEYS}
    wanted["vision_cfg"] |= {"timm_model_pretrained": False} if "timm_model_name" in wanted["vision_cfg"] else {}
    text = wanted["text_cfg"]
    try:
        with quiet(), _hf_folder(text) as folder:
            if "hf_model_name" in text:
                text |= {"hf_model_name": folder, "hf_model_pretrained": False}
            return open_clip.CustomTextCLIP(**wanted)
    except MmclError:
        raise
    except Exception as error:  # its constructors check little: anything may come of a value of another kind
        raise MmclError(f"open_clip cannot build this model ({first_line(error)})") from None


def with_vision_settings(config: dict[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Put ``settings`` into the ``vision_cfg`` of ``config``.

    Raises:
        MmclError: one of them is no setting of open_clip's.
    """
    from open_clip.model import CLIPVisionCfg

    known = [field.name for field in fields(CLIPVisionCfg)]
    for key in settings:
        if key not in known:
            raise MmclError(f"{where}: open_clip's vision_cfg has no setting '{key}'; {nearest(key, known)}")
    config["vision_cfg"].update(settings)


def fill(model: Any, state: Mapping[str, Tensor], where: str) -> None:
    """Give ``model`` (see :func:`build_model`) the weights ``state``, whichever of open_clip's layouts they have.

    Position embeddings of another grid or length are interpolated, as open_clip does.

    Raises:
        MmclError: they belong to another architecture.
    """
    from open_clip.factory import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    kept = {key: value for key, value in state.items() if not key.startswith(CAPTIONER)}
    try:
        kept = convert_state_dict(model, kept)
        if "positional_embedding" in kept:
            kept = convert_to_custom_text_state_dict(kept)
        kept.pop("text.transformer.embeddings.position_ids", None)  # transformers kept it until 4.31
        if model.logit_bias is not None:
            kept.setdefault("logit_bias", torch.zeros_like(model.logit_bias))
        elif "logit_bias" in kept:
            model.logit_bias = nn.Parameter(torch.zeros_like(model.logit_scale))
        for key in {"logit_scale", "logit_bias"} & kept.keys():
            kept[key] = kept[key].reshape(getattr(model, key).shape)
        with quiet():
            resize_pos_embed(kept, model)
            if getattr(model.text, "positional_embedding", None) is not None:
                resize_text_pos_embed(kept, model)
        model.load_state_dict(kept)  # which also brings half precision to float32
    except (RuntimeError, KeyError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MmclError(f"{where}: not the weights of this architecture: {reason}") from None


@contextmanager
def _hf_folder(text: dict[str, Any]) -> Iterator[str | None]:
    """A folder that transformers reads the config of a text half from, without names of code beside it."""
    config = text.pop("hf_config", None)
    if "hf_model_name" not in text:
        yield None
        return
    if config is None:
        config = read_config(text["hf_model_name"], f"text model '{text['hf_model_name']}'").to_dict()
    with tempfile.TemporaryDirectory() as folder:
        plain = {name: value for name, value in config.items() if name != "auto_map"}
        (Path(folder) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        read_config(folder, f"text model '{text['hf_model_name']}'")  # which refuses code of the hub
        yield folder
