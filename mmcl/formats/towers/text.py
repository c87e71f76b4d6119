"""Text towers and the processors of their texts: by name (``open_clip:…``, a transformers encoder, ``scratch``), and as
a model folder describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mmcl.config.model import TextTowerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.formats.open_clip import models as open_clip_models
from mmcl.formats.open_clip import text as open_clip_text
from mmcl.formats.plausible import weights_bytes
from mmcl.formats.sentence_transformers.read import read_settings
from mmcl.formats.sentence_transformers.towers import Wanted, open_tower
from mmcl.formats.tokenizers import open_tokenizer, read_tokenizer
from mmcl.formats.towers import registered
from mmcl.formats.towers.registered import MAX_TOKENS, is_registered
from mmcl.formats.transformers.nets import local_folder, rebuild
from mmcl.models.activations import checkpoint_activations
from mmcl.models.layers import layer_of_spec, layer_spec
from mmcl.models.text.limits import count_positions
from mmcl.models.text.open_clip import OpenClipTextTower
from mmcl.models.text.padding import Padding
from mmcl.models.text.plain import PlainTextTower
from mmcl.models.text.static import WordTower, WordVectors
from mmcl.models.text.token_layers import TOKEN_LAYERS
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError

_READ = ("max_tokens", "prompts", "default_prompt", "include_prompt", "lowercase")
_READ_BARE = ("padding_id", "ignored_id")  # of a network that reads no special tokens

NAMED = {
    "scratch": "A small new transformer, with a tokenizer trained on the run's own texts.",
    "open_clip:NAME": "The text tower of any open_clip model, such as `open_clip:ViT-B-32`.",
    "NAME": "A transformers or sentence-transformers model, by hub name or folder, or `sample:minilm`.",
}
"""Other text towers by how they are named."""


def lacks_tokenizer(config: TextTowerConfig) -> bool:
    """Whether the tower comes without a tokenizer, and the config names none: one is to be trained."""
    return (config.name == "scratch" or is_registered(config.name)) and config.tokenizer.name is None


def build_text_tower(config: TextTowerConfig, tokenizer: Any = None) -> tuple[TextProcessor, TextTower]:
    """The tower that the config names, behind the processor of its texts.

    One from scratch, or of another package, needs a ``tokenizer``, unless the config names that too.

    Raises:
        MmclError: there is no such model, or it cannot be read.
    """
    processor: TextProcessor
    tower: TextTower
    if is_registered(config.name):
        processor, tower = _plain(config, tokenizer)
    elif config.args:
        raise MmclError(f"model.text.args: '{config.name}' takes none; remove {', '.join(config.args)}")
    elif config.name.startswith("open_clip:"):
        processor, tower = open_clip_models.build_text_tower(config)
    elif config.name != "scratch":
        if isinstance(config.pretrained, str):
            raise MmclError(f"text model '{config.name}': 'pretrained' is true or false for a transformers model")
        processor, tower = open_text_tower(config.name, config.pretrained, config.max_tokens, config.pooling)
    else:
        processor, tower = _scratch(config, tokenizer)
    if config.prompts is not None:
        processor.replace_prompts(config.prompts)
    if config.checkpointing:
        checkpoint_activations(tower.net, f"model.text.checkpointing: '{config.name}'")
    return processor, tower


def _tokenizer(config: TextTowerConfig, tokenizer: Any) -> Any:
    if tokenizer is None:
        if config.tokenizer.name is None:
            raise MmclError(f"model.text: tower '{config.name}' needs a tokenizer; set model.text.tokenizer.name")
        tokenizer = open_tokenizer(config.tokenizer.name)
    return tokenizer


def _plain(config: TextTowerConfig, tokenizer: Any) -> tuple[TextProcessor, TextTower]:
    """A registered tower."""
    if config.pooling is not None:
        raise MmclError(f"model.text.pooling: '{config.name}' has a pooling of its own; leave it out")
    return registered.new_tower(config, _tokenizer(config, tokenizer))


def _scratch(config: TextTowerConfig, tokenizer: Any) -> tuple[TextProcessor, TextTower]:
    from transformers import BertConfig, BertModel

    tokenizer = _tokenizer(config, tokenizer)
    max_tokens = config.max_tokens or MAX_TOKENS
    architecture = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=max_tokens,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    net = BertModel(architecture)
    # Drawn at random as tokens are, these would be two thirds of what a new tower gives: where a token stands, and
    # that all are of the first kind. From zero on they tell what they are learned to tell.
    nn.init.zeros_(net.embeddings.position_embeddings.weight)
    nn.init.zeros_(net.embeddings.token_type_embeddings.weight)
    token_weights = None
    if config.token_weights is not None:
        token_weights = TokenWeights.smooth_inverse_frequency(tokenizer, config.token_weights)
    processor = TextProcessor(tokenizer, max_tokens=max_tokens)
    return processor, TextTower(net, processor, pooling=config.pooling or "mean", token_weights=token_weights)


def open_text_tower(
    name: str, weights: bool = True, max_tokens: int | None = None, pooling: str | None = None
) -> tuple[TextProcessor, TextTower]:
    """A transformers or sentence-transformers model by folder, hub name or ``sample:NAME``: processor and tower.

    Args:
        name: of the model.
        weights: load them, rather than draw new ones.
        max_tokens: longer texts are cut here; by default where the model's own settings say.
        pooling: by default as the model's own settings say.

    Raises:
        MmclError: there is no such model, it cannot be read, or it has fewer positions than ``max_tokens``.
    """
    pipeline = read_settings(local_folder(name))
    return open_tower(pipeline, Wanted(name, weights, max_tokens, pooling))


def describe_text_tower(processor: TextProcessor, tower: TextTower) -> dict[str, Any]:
    """What rebuilds both, weights and tokenizer files apart."""
    if isinstance(tower, OpenClipTextTower):
        return open_clip_text.describe_text_tower(processor, tower)
    bare = isinstance(tower, WordTower) or getattr(tower.net, "bare", False)
    read = {name: getattr(processor, name) for name in (*_READ, *(_READ_BARE if bare else ()))}
    if isinstance(tower, PlainTextTower):
        return {"library": tower.spec["name"].partition(":")[0], **tower.spec, **read}
    padding, layers = tower.padding, [] if tower.token_layers is None else tower.token_layers.layers
    words = isinstance(tower, WordTower)
    return {
        **({"words": list(tower.net.vectors.weight.shape)} if words else _of_transformers(tower.net)),
        "pooling": tower.pooling,
        **read,
        **({"padded": padding.length, "masked": padding.masked} if padding.length else {}),
        **({} if padding.length else {"mixes_padding": padding.mixes, "least_tokens": padding.least_tokens}),
        **({"token_weights": True} if tower.token_weights is not None else {}),
        **({"token_layers": [layer_spec(layer, TOKEN_LAYERS) for layer in layers]} if layers else {}),
    }


def _of_transformers(net: Any) -> dict[str, Any]:
    return {"config": net.config.to_diff_dict(), "architecture": type(net).__name__}


def rebuild_text_tower(spec: dict[str, Any], folder: Path, files: Path) -> tuple[TextProcessor, TextTower]:
    """Of what :func:`describe_text_tower` gave, the processor and the tower, with fresh weights.

    Args:
        spec: of the tower.
        folder: of the model, with the weights that the tower is to have.
        files: folder of its tokenizer's files.
    """
    if spec.get("library") == "open_clip":
        return open_clip_text.rebuild_text_tower(spec, files)
    read = {name: spec[name] for name in (*_READ, *_READ_BARE) if name in spec}
    if "library" in spec:
        processor = TextProcessor(read_tokenizer(files), **read)
        return processor, registered.rebuild(spec, processor)
    tokenizer, words = read_tokenizer(files), "words" in spec
    if words:
        net: Any = WordVectors(*spec["words"])
    else:
        net = rebuild(spec["config"], spec.get("architecture"), weights_bytes(folder))
        if spec["max_tokens"] > (positions := count_positions(net)):
            raise ValueError(f"max_tokens is {spec['max_tokens']}, and there are {positions} positions")
    processor = TextProcessor(tokenizer, **read)
    padding = Padding(
        length=spec.get("padded", 0),
        masked=spec.get("masked", True),
        mixes=spec.get("mixes_padding"),
        least_tokens=spec.get("least_tokens", 1),
    )
    settings = {
        "pooling": spec["pooling"],
        "padding": padding,
        "token_weights": TokenWeights(len(tokenizer)) if spec.get("token_weights") else None,
        "layers": [layer_of_spec(layer, TOKEN_LAYERS) for layer in spec.get("token_layers", ())],
    }
    return processor, (WordTower if words else TextTower)(net, processor, **settings)
