"""Checkpoint files of whole CLIP models: read without unpickling, and told apart by their tensors."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmcl.models.open_clip_nets import QUICK, build_whole, first_line, model_config, quiet
from mmcl.runtime.errors import MmclError

Layout = Literal["open_clip", "openai", "transformers"]
_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")


def read_state(path: Path) -> tuple[dict[str, Tensor], Layout]:
    """Weights by name, and whose names they are.

    Reads safetensors files, PyTorch files (a plain state dict, or one under ``state_dict`` as open_clip's training
    writes it, ``module.`` prefixes removed), and OpenAI's TorchScript archives.

    Raises:
        MmclError: the file is damaged, holds Python objects, or is no CLIP model.
    """
    try:
        state, scripted = _tensors(path)
    except pickle.UnpicklingError:
        raise MmclError(
            f"{path}: holds Python objects beside its tensors, and those are never unpickled; save its state dict as "
            "a .safetensors file"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise MmclError(f"{path}: damaged, or no checkpoint ({first_line(error)})") from None
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith(("text_model.", "vision_model.")) for key in state):
        return state, "transformers"
    if not any(key.startswith(("visual.", "image_encoder.")) for key in state):
        raise MmclError(f"{path}: these are not the weights of a whole CLIP model; it has no visual tower")
    openai = scripted or any(key in state for key in _OPENAI_KEYS)
    state = {key: value for key, value in state.items() if key not in _OPENAI_KEYS}
    return state, "openai" if openai else "open_clip"


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
            model = build_whole(config)
        except (MmclError, NotImplementedError):  # some of timm's networks compute while they are built
            return False
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("logit")}
    return own == wanted


def _as_halves(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    from open_clip.model import convert_to_custom_text_state_dict

    halves = convert_to_custom_text_state_dict(dict(state))
    outside = ("logit", "text_decoder.")
    return {name: tensor.shape for name, tensor in halves.items() if not name.startswith(outside)}


def ambiguous(path: Path, names: list[str]) -> MmclError:
    """What to tell somebody whose file fits several names, or none."""
    if not names:
        return MmclError(
            f"{path}: its architecture is none of open_clip's; put it into a folder with an open_clip_config.json, or "
            "name the model it came from: NAME/FILE"
        )
    ways = " or ".join(f"'{name}/{path}'" for name in names)
    why = " (QuickGELU or GELU: the weights do not tell)" if any(name.endswith(QUICK) for name in names) else ""
    return MmclError(f"{path}: fits several models{why}; name one: {ways}")


def _tensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file, and whether it is a TorchScript archive."""
    if path.suffix == ".safetensors":
        return load_file(path), False
    if _is_torchscript(path):
        with quiet():  # TorchScript is deprecated, and OpenAI's archives are in it for good
            module = torch.jit.load(str(path), map_location="cpu")
        return dict(module.state_dict()), True
    found = torch.load(path, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}, False


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
