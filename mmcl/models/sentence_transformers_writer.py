"""Encoders of texts as folders of sentence-transformers, written without that library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from mmcl.models.sentence_transformers import (
    MODULES,
    POOLING_FLAGS,
    POOLING_NAMES,
    SETTINGS,
    TRANSFORMER_CONFIGS,
    WEIGHTS,
)
from mmcl.models.text_tower import TextTower
from mmcl.models.transformers_nets import quiet_transformers
from mmcl.models.weights import load_weights, save_tensors
from mmcl.runtime.files import write_json

if TYPE_CHECKING:
    from mmcl.models.embedder import Embedder


def cannot_express(embedder: Embedder) -> str | None:
    """Why that library cannot compute what ``embedder`` does; None if it can."""
    tower = embedder.tower
    if not isinstance(tower, TextTower) or not hasattr(tower.net, "save_pretrained") or tower.padded:
        return "it opens text encoders of transformers only"
    unknown = [name for name in tower.pooling.split("+") if name not in POOLING_NAMES.values()]
    if unknown and not (tower.pooling == "pooler" and _pooler(tower.net) is not None):
        return f"it has no pooling '{unknown[0]}'"
    if wrong := next((layer for layer in embedder.head if not _has_place(layer)), None):
        return f"its dense layers cannot hold {wrong}"
    return None


def write(embedder: Embedder, folder: Path) -> None:
    """A folder that every release of that library since the second opens, with equal vectors.

    It has the older spellings, which new releases read and old ones do not have to learn.
    """
    tower = cast(TextTower, embedder.tower)
    if tower.tokenizer.pad_token is None:  # by which that library pads
        tower.tokenizer.pad_token = tower.tokenizer.eos_token
    with quiet_transformers():
        tower.net.save_pretrained(folder)
    tower.save_tokenizer(folder)
    limits = {"max_seq_length": tower.max_tokens, "do_lower_case": tower.lowercase}
    write_json(folder / TRANSFORMER_CONFIGS[0], limits)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", f"{number}_Dense") for number, _ in enumerate(_dense_layers(embedder), start=2)]
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    for _, name in modules[1:]:
        (folder / name).mkdir()
    write_json(folder / "1_Pooling" / "config.json", _pooling_config(tower))
    for (layer, activation), (_, name) in zip(_dense_layers(embedder), modules[2:], strict=False):
        settings = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": f"{type(activation).__module__}.{type(activation).__name__}",
        }
        write_json(folder / name / "config.json", settings)
        save_tensors(folder / name / WEIGHTS, {f"linear.{key}": value for key, value in layer.state_dict().items()})
    listing = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    write_json(folder / MODULES, listing)
    whole = {"prompts": tower.prompts, "default_prompt_name": tower.default_prompt, "similarity_fn_name": "cosine"}
    write_json(folder / SETTINGS, whole)


def read_weights(embedder: Embedder, folder: Path) -> None:
    """Fill ``embedder`` with what :func:`write` wrote of it.

    Raises:
        MmclError: a file is missing, damaged, or of another architecture.
    """
    load_weights(embedder.tower.net, folder / WEIGHTS)
    for number, (layer, _) in enumerate(_dense_layers(embedder), start=2):
        load_weights(nn.ModuleDict({"linear": layer}), folder / f"{number}_Dense" / WEIGHTS)


def _pooling_config(tower: TextTower) -> dict[str, Any]:
    theirs = {ours: name for name, ours in POOLING_NAMES.items()}
    modes = ["cls" if name == "pooler" else theirs[name] for name in tower.pooling.split("+")]
    config: dict[str, Any] = {"word_embedding_dimension": int(tower.net.config.hidden_size)}
    if modes == [mode for mode in POOLING_FLAGS.values() if mode in modes]:
        config |= {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    else:  # flags cannot tell of another order
        config["pooling_mode"] = modes
    return config if tower.include_prompt else config | {"include_prompt": False}


def _dense_layers(embedder: Embedder) -> list[tuple[nn.Linear, nn.Module]]:
    """Each linear layer behind the pooled token states, with its activation."""
    tower = cast(TextTower, embedder.tower)
    pooler = _pooler(tower.net) if tower.pooling == "pooler" else None
    layers: list[tuple[nn.Linear, nn.Module]] = [] if pooler is None else [pooler]
    for module in embedder.head:
        if isinstance(module, nn.Linear):
            layers.append((module, nn.Identity()))
        elif not isinstance(module, (nn.Dropout, nn.Identity)):
            layers[-1] = (layers[-1][0], module)
    return layers


def _pooler(net: Any) -> tuple[nn.Linear, nn.Module] | None:
    """The dense layer and activation that BERT and its kin put on the first token's state; None for other models."""
    pooler = getattr(net, "pooler", None)
    if not isinstance(pooler, nn.Module) or {name for name, _ in pooler.named_children()} != {"dense", "activation"}:
        return None
    return (cast(nn.Linear, pooler.dense), nn.Tanh()) if isinstance(pooler.activation, nn.Tanh) else None


def _has_place(layer: nn.Module) -> bool:
    """Whether a dense layer there can hold it: an activation is known by its class alone."""
    if isinstance(layer, (nn.Linear, nn.Dropout)):
        return True
    kind = type(layer)
    return kind.__module__.startswith("torch.nn.") and not any(layer.parameters()) and repr(layer) == repr(kind())
