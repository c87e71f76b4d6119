"""Checkpoint files of CLIP models: read without unpickling, and identified by their tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmcl.formats.open_clip.nets import CAPTIONER, QUICK, build_model, model_config
from mmcl.formats.tensor_files import is_safetensors, read_groups, require_finite
from mmcl.formats.torchscript import is_torchscript
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
Layout = Literal["open_clip", "openai", "transformers"]
_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
# What torch.compile, FSDP and activation checkpointing put into names; no network has layers that are called so.
_INSERTED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_VISUAL = re.compile(r"(?<![^.])(?:visual|image_encoder|vision_model|text_model)\.")
_COPY = re.compile(r"ema|teacher|momentum|target|average|shadow")


def read_state(path: Path) -> tuple[dict[str, Tensor], Layout]:
    """Weights by name, and whose names they are.

    Reads safetensors files, PyTorch files and OpenAI's TorchScript archives. The weights may lie under a key such as
    ``state_dict``, and their names have prefixes such as ``module.``, ``_orig_mod.`` or Lightning's ``model.``, which
    are removed; tensors beside the model's are counted and left out.

    Raises:
        MmclError: the file is damaged, holds Python objects, no CLIP model or several, or values that are not finite.
    """
    groups = {
        name: {_INSERTED.sub("", key): tensor for key, tensor in tensors.items()}
        for name, tensors in read_groups(path).items()
    }
    state = _model(groups, path)
    require_finite(((name, tensor) for name, tensor in state.items() if not name.startswith(CAPTIONER)), path)
    if any(key.startswith(("text_model.", "vision_model.")) for key in state):
        return state, "transformers"
    scripted = not is_safetensors(path) and is_torchscript(path)
    openai = scripted or any(key in state for key in _OPENAI_KEYS)
    state = {key: value for key, value in state.items() if key not in _OPENAI_KEYS}
    return state, "openai" if openai else "open_clip"


def _model(groups: Mapping[str, Mapping[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """The tensors of the one model with a visual tower, without the prefix of their names."""
    places = {(group, prefix) for group, tensors in groups.items() for prefix in _prefixes(tensors)}
    if len(places) > 1:  # a copy that an optimizer or a teacher keeps is not what was trained
        places = {place for place in places if not _COPY.search(".".join(place))} or places
    if len(places) > 1:
        names = ", ".join(repr(f"{group}.{prefix}".strip(".")) for group, prefix in sorted(places))
        raise MmclError(f"{path}: holds several models ({names}); save the state dict of one")
    if not places:
        example = next((f", but '{key}'" for tensors in groups.values() for key in tensors), "")
        raise MmclError(f"{path}: these are not the weights of a CLIP model; it has no visual tower{example}")
    group, prefix = places.pop()
    state = {key.removeprefix(prefix): value for key, value in groups[group].items() if key.startswith(prefix)}
    if left := [key for key in groups[group] if not key.startswith(prefix)]:
        log.info("%s: %d tensors beside the model's are left out, such as '%s'", path, len(left), left[0])
    return state


def _prefixes(tensors: Mapping[str, Tensor]) -> set[str]:
    """What stands before the names of the towers: "" where one stands at the beginning."""
    found = {key[: match.start()] for key in tensors if (match := _VISUAL.search(key))}
    return {""} if "" in found else found


def candidates(state: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Names of open_clip's models that have exactly tensors like ``state``; they may differ in their activation.

    Weights of OpenAI's were trained with QuickGELU, so that only names with it are given.
    """
    import open_clip

    wanted = _as_halves(state)
    return [name for name in open_clip.list_models() if _fits(model_config(name), wanted, layout)]


def _fits(config: dict[str, Any], wanted: Mapping[str, torch.Size], layout: Layout) -> bool:
    if layout == "openai" and not config.get("quick_gelu"):
        return False
    text = {"width": 512, "vocab_size": 49408, "layers": 12, **config["text_cfg"]}
    if "hf_model_name" in text or wanted.get("text.token_embedding.weight") != (text["vocab_size"], text["width"]):
        return False  # the cheap test first: networks are built for the few that pass it
    if f"text.transformer.resblocks.{text['layers'] - 1}.ln_1.weight" not in wanted:
        return False
    with torch.device("meta"):
        try:
            model = build_model(config)
        except (MmclError, NotImplementedError):  # some of timm's networks compute while they are built
            return False
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("logit")}
    return own == wanted


def _as_halves(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    from open_clip.model import convert_to_custom_text_state_dict

    halves = convert_to_custom_text_state_dict(dict(state))
    outside = ("logit", CAPTIONER)
    return {name: tensor.shape for name, tensor in halves.items() if not name.startswith(outside)}


def ambiguous(path: Path, names: list[str]) -> MmclError:
    """The error for somebody whose file fits several names, or none."""
    if not names:
        return MmclError(
            f"{path}: its architecture is none of open_clip's; put it into a folder with an open_clip_config.json, or "
            "name the model it came from: NAME/FILE"
        )
    ways = " or ".join(f"'{name}/{path}'" for name in names)
    why = " (QuickGELU or GELU: the weights do not tell)" if any(name.endswith(QUICK) for name in names) else ""
    return MmclError(f"{path}: fits several models{why}; name one: {ways}")
