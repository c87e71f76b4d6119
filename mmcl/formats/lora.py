"""Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685), by peft."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from torch import nn

from mmcl.config.model import LoraConfig
from mmcl.formats.tensor_files import read_tensors, require_finite
from mmcl.models.blocks import blocks
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import read_json

log = logging.getLogger("mmcl")
_CODE = ("megatron_config", "corda_config", "lora_ga_config", "eva_config")
ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_lora(net: nn.Module, config: LoraConfig) -> list[nn.Module]:
    """Put adapters beside the layers of the blocks of ``net`` and freeze everything else. The outputs stay as they are,
    since an adapter starts at zero.

    Layers whose weights are frozen already get none, so that :func:`mmcl.models.blocks.freeze`, called before, keeps
    its blocks. Of torch's ``nn.MultiheadAttention`` the projections to queries, keys and values are adapted as one
    matrix; its output projection is not, since it holds no layer that is called.

    Returns:
        The modules that have to stay in evaluation mode while ``net`` trains: running statistics are no adapters.

    Raises:
        MmclError: peft is not installed, there is nothing to adapt, or the settings do not suit the layers.
    """
    peft = _peft("lora")
    layers, attentions = _targets(net, config.targets)
    if attentions and config.dropout:
        raise MmclError(
            f"lora.dropout is {config.dropout}, but the attention of {type(net).__name__} has bare matrices, whose "
            "adapters cannot have dropout; set it to 0, or adapt the MLPs only with lora.targets: [c_fc, c_proj]"
        )
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # an integer by annotation, but only divided by the rank
        lora_dropout=config.dropout,
        target_modules="|".join(map(re.escape, layers)) if layers else [],
        target_parameters=[f"{name}.in_proj_weight" for name in attentions] or None,
    )
    try:
        peft.inject_adapter_in_model(settings, net)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise MmclError(f"lora: {error}; choose other layers with lora.targets") from None
    if attentions:
        log.info("LoRA: the output projections of %d attention layers are not adapted", len(attentions))
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def merge_lora(net: nn.Module) -> None:
    """Add the adapters of ``net`` to its weights and take them out: its state has its original names again.

    Nothing happens to a network without adapters.
    """
    adapters = _adapters(net)
    for path, adapter in adapters.items():
        adapter.merge()
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, adapter.get_base_layer())
    if adapters:
        # By these peft and transformers would take it for one with adapters.
        del net.peft_config
        if hasattr(net, "_hf_peft_config_loaded"):
            net._hf_peft_config_loaded = False  # type: ignore[assignment]


def adapter_base(folder: Path) -> str | None:
    """The folder or hub name of the model that the adapters in ``folder``, as peft saves them, are for; None where
    there are no adapters.

    Raises:
        MmclError: it is not said, the adapters are of another kind than LoRA, or learned more than adapters.
    """
    path = folder / ADAPTER
    if not path.is_file():
        return None
    try:
        config = read_json(path)
        kind, base, full = config["peft_type"], config.get("base_model_name_or_path"), config.get("modules_to_save")
        named = [config.get(key) for key in _CODE]
    except (OSError, KeyError, TypeError) as error:
        raise MmclError(f"{path}: damaged ({type(error).__name__}: {error}); take a fresh copy") from None
    if kind != "LORA":
        raise MmclError(
            f"{folder}: adapters of the kind {kind} are not supported, only LORA; merge them with peft first"
        )
    if full:
        raise MmclError(f"{folder}: holds full layers ({', '.join(full)}) beside adapters; merge them with peft first")
    if any(named):
        raise MmclError(f"{path}: {', '.join(_CODE)} name modules and files to run or read; remove them")
    if not base:
        raise MmclError(f"{path}: does not say what model it adapts; set base_model_name_or_path to its folder or name")
    return str(base)


def adapts_itself(folder: Path, base: str) -> bool:
    """Whether the models that ``base`` adapts in turn, and theirs, lead back to a folder met before."""
    met = {folder.resolve()}
    while True:
        path = Path(base).expanduser().resolve()
        if path in met:
            return True
        met.add(path)
        if not path.is_dir() or (following := adapter_base(path)) is None:
            return False
        base = following


def merge_adapter(net: Any, folder: Path) -> None:
    """Add the low-rank adapters that peft saved in ``folder`` to the weights of the transformers model ``net``.

    Adapters of a model with a head, such as a causal language model, suit its base model as well.

    Raises:
        MmclError: peft is not installed, or the adapters are missing, damaged or of another model.
    """
    peft = _peft(f"{folder}: a LoRA adapter")
    weights = folder / _ADAPTER_WEIGHTS
    if (older := folder / "adapter_model.bin").is_file() and not weights.is_file():
        weights = older
    if not weights.is_file():
        raise MmclError(f"{folder}: the adapters' weights ({_ADAPTER_WEIGHTS}) are missing; take a fresh copy")
    tensors = read_tensors(weights)
    require_finite(tensors.items(), weights)
    learning = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    try:
        peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(folder), net)
        prefix = f"{net.base_model_prefix}."  # what the base is called within a model with a head
        state = {
            name.removeprefix("base_model.model.").removeprefix(prefix): tensor for name, tensor in tensors.items()
        }
        loaded = peft.set_peft_model_state_dict(net, state)
    except Exception as error:  # peft checks little of what its config says
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MmclError(f"{folder}: the adapters do not suit {type(net).__name__}: {reason}") from None
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if wrong := sorted([*missing, *loaded.unexpected_keys]):
        raise MmclError(f"{folder}: the adapters are of another model than {type(net).__name__}, as '{wrong[0]}' shows")
    merge_lora(net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(learning[name])


def _peft(what: str) -> Any:
    try:
        import peft
    except ImportError:
        raise MmclError(f"{what} needs the package peft: pip install 'mmcl[lora]'") from None
    return peft


def has_lora(net: nn.Module) -> bool:
    """Whether ``net`` has adapters."""
    return hasattr(net, "peft_config")


def _adapters(net: nn.Module) -> dict[str, Any]:
    """Path to adapted layer; empty without a need for peft where there are none."""
    if not has_lora(net):
        return {}
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in net.named_modules() if isinstance(module, LoraLayer)}


def _targets(net: nn.Module, wanted: list[str] | None) -> tuple[list[str], list[str]]:
    """Paths of the layers to adapt, and of the attention layers whose bare matrices are to be adapted."""
    found = {id(block) for block in blocks(net)}
    within = tuple(f"{path}." for path, module in net.named_modules() if id(module) in found)
    kinds = (nn.Linear, nn.MultiheadAttention) if wanted is None else (nn.Linear, nn.MultiheadAttention, nn.Conv2d)
    layers: list[str] = []
    attentions: list[str] = []
    names: set[str] = set()
    for path, module in net.named_modules():
        parent, _, name = path.rpartition(".")
        if not path.startswith(within) or isinstance(net.get_submodule(parent), nn.MultiheadAttention):
            continue
        if isinstance(module, kinds) and all(parameter.requires_grad for parameter in module.parameters()):
            names.add(name)
            if wanted is None or name in wanted:
                (attentions if isinstance(module, nn.MultiheadAttention) else layers).append(path)
    if wanted is not None and (unknown := [name for name in wanted if name not in names]):
        hint = nearest(unknown[0], names) or "none of its layers can be adapted"
        raise MmclError(f"lora.targets: no layer of {type(net).__name__} that learns is called '{unknown[0]}'; {hint}")
    if not layers and not attentions:
        raise MmclError(
            f"lora: {type(net).__name__} has no linear layers in blocks that learn; name convolutions in lora.targets, "
            "or learn its last blocks as they are with freeze_blocks"
        )
    return layers, attentions
