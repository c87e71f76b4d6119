"""Encoders of texts as folders of sentence-transformers, written without that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from mmcl.formats.sentence_transformers.read import (
    MODULES,
    POOLING_FLAGS,
    POOLING_NAMES,
    SETTINGS,
    TRANSFORMER_CONFIGS,
    WEIGHTS,
    read_token_weights,
)
from mmcl.formats.tokenizers import save_tokenizer
from mmcl.formats.transformers.nets import fill, quiet_transformers
from mmcl.formats.weights import load_weights, pass_on, save_tensors
from mmcl.models.heads import ACTIVATIONS
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import UNLIMITED
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import write_json


def cannot_express(embedder: TextEmbedder) -> str | None:
    """Why that library cannot compute what ``embedder`` does; None if it can."""
    tower, include_prompt = embedder.tower, embedder.processor.include_prompt
    if not hasattr(tower.net, "save_pretrained") or tower.padding.length:
        return "it opens text encoders of transformers only"
    if tower.token_weights is not None and tower.pooling != "mean":
        return f"it has no token weights in pooling '{tower.pooling}'"
    if tower.token_weights is not None and not include_prompt:
        return "its token weights count a prompt that is left out of the pooling"
    if tower.pooling == "pooler" and not include_prompt:
        return "its first token is the one behind a prompt that is left out of the pooling"
    unknown = [name for name in tower.pooling.split("+") if name not in POOLING_NAMES.values()]
    if unknown and not (tower.pooling == "pooler" and _pooler(tower.net) is not None):
        return f"it has no pooling '{unknown[0]}'"
    return None


def write(towers: Towers, folder: Path) -> None:
    """Write the text half of ``towers`` as a folder that sentence-transformers opens, with equal vectors.

    It has the older spellings, which new releases read too. A BERT's own pooler goes into a dense layer.
    """
    embedder, conventions = towers.text(), towers.conventions
    processor, tower = embedder.processor, embedder.tower
    if processor.tokenizer.pad_token is None:  # by which that library pads
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    with quiet_transformers():
        tower.net.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        pass_on(path)
    save_tokenizer(processor.tokenizer, folder)
    limit = processor.max_tokens if processor.max_tokens < UNLIMITED else None
    limits = {"max_seq_length": limit, "do_lower_case": processor.lowercase}
    write_json(folder / TRANSFORMER_CONFIGS[0], limits)
    kinds = ["Transformer", *_weighted(tower), "Pooling", *("Dense" for _ in _dense_layers(embedder))]
    kinds += ["Normalize"] if conventions.normalize else []
    modules = [(kind, f"{number}_{kind}" if number else "") for number, kind in enumerate(kinds)]
    for _, name in modules[1:]:
        (folder / name).mkdir()
    if tower.token_weights is not None:
        _write_token_weights(embedder, folder / "1_WordWeights")
    write_json(folder / f"{kinds.index('Pooling')}_Pooling" / "config.json", _pooling_config(embedder))
    dense = [name for kind, name in modules if kind == "Dense"]
    for (layer, activation), name in zip(_dense_layers(embedder), dense, strict=True):
        settings = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": f"{activation.__module__}.{activation.__name__}",
        }
        write_json(folder / name / "config.json", settings)
        save_tensors(folder / name / WEIGHTS, {f"linear.{key}": value for key, value in layer.state_dict().items()})
    listing = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    write_json(folder / MODULES, listing)
    settings = {
        "prompts": processor.prompts,
        "default_prompt_name": processor.default_prompt,
        "similarity_fn_name": conventions.similarity,
        "truncate_dim": conventions.truncate_dim,
    }
    write_json(folder / SETTINGS, settings)


def read_weights(embedder: TextEmbedder, folder: Path) -> None:
    """Fill ``embedder`` with what :func:`write` wrote of it.

    Raises:
        MmclError: a file is missing, damaged, or of another architecture.
    """
    tower = embedder.tower
    fill(tower.net, folder)
    if tower.token_weights is not None:
        values = read_token_weights(folder / "1_WordWeights")
        if len(values) != len(tower.token_weights.log_weight):
            raise MmclError(f"{folder / '1_WordWeights'}: not as many weights as the tokenizer has tokens")
        tower.token_weights.load_state_dict(TokenWeights.of(values).state_dict())
    for number, (layer, _) in enumerate(_dense_layers(embedder), start=2 + len(_weighted(tower))):
        load_weights(nn.ModuleDict({"linear": layer}), folder / f"{number}_Dense" / WEIGHTS)


def _weighted(tower: TextTower) -> list[str]:
    return [] if tower.token_weights is None else ["WordWeights"]


def _write_token_weights(embedder: TextEmbedder, folder: Path) -> None:
    assert embedder.tower.token_weights is not None, "the caller looks"
    values = embedder.tower.token_weights.values().cpu()
    vocabulary = embedder.processor.tokenizer.convert_ids_to_tokens(range(len(values)))
    by_token = dict(zip(vocabulary, values.tolist(), strict=True))
    write_json(folder / "config.json", {"vocab": vocabulary, "word_weights": by_token, "unknown_word_weight": 1.0})
    save_tensors(folder / WEIGHTS, {"emb_layer.weight": values[:, None].contiguous()})


def _pooling_config(embedder: TextEmbedder) -> dict[str, Any]:
    tower = embedder.tower
    theirs = {ours: name for name, ours in POOLING_NAMES.items()}
    modes = ["cls" if name == "pooler" else theirs[name] for name in tower.pooling.split("+")]
    config: dict[str, Any] = {"word_embedding_dimension": int(tower.net.config.hidden_size)}
    if modes == [mode for mode in POOLING_FLAGS.values() if mode in modes]:
        config |= {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    else:  # flags cannot say another order
        config["pooling_mode"] = modes
    return config if embedder.processor.include_prompt else config | {"include_prompt": False}


def _dense_layers(embedder: TextEmbedder) -> list[tuple[nn.Linear, type[nn.Module]]]:
    """Each dense layer behind the pooled token states, with its activation."""
    tower, head = embedder.tower, embedder.head
    pooler = _pooler(tower.net) if tower.pooling == "pooler" else None
    activations = [ACTIVATIONS[layer.activation] for layer in head.layers]
    behind = list(zip(head.linear_layers(), activations, strict=True))
    return behind if pooler is None else [(pooler, nn.Tanh), *behind]


def _pooler(net: Any) -> nn.Linear | None:
    """The dense layer before a tanh that BERT and its kin put on the first token's state; None for other models."""
    pooler = getattr(net, "pooler", None)
    if not isinstance(pooler, nn.Module) or {name for name, _ in pooler.named_children()} != {"dense", "activation"}:
        return None
    return cast(nn.Linear, pooler.dense) if isinstance(pooler.activation, nn.Tanh) else None
