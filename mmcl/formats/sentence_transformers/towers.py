"""Text towers of what folders of sentence-transformers describe, each kind of module that reads texts by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mmcl.config.model import TextTowerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.tokenize import drop_special_tokens, unknown_id
from mmcl.data.processors.words import WordTokenizer
from mmcl.formats.sentence_transformers.files import read_config, read_weights
from mmcl.formats.sentence_transformers.layers import fill_layer
from mmcl.formats.sentence_transformers.read import Pipeline, read_token_weights, weights_of
from mmcl.formats.tokenizers import read_tokenizer, read_tokenizer_file
from mmcl.formats.towers.registered import around
from mmcl.formats.transformers.nets import open_net
from mmcl.models.text.limits import UNLIMITED, count_positions, tightest
from mmcl.models.text.static import TokenCounts, TokenMean, WordTower, WordVectors
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.runtime.errors import MmclError

log = logging.getLogger("mmcl")
WORDS_CONFIG = "wordembedding_config.json"


class Wanted(NamedTuple):
    """What is wanted of a tower, beside what its folder says.

    Attributes:
        name: of the model, for messages.
        weights: load them, rather than draw new ones.
        max_tokens: longer texts are cut here; by default where the model's own settings say.
        pooling: by default as the model's own settings say.
    """

    name: str
    weights: bool = True
    max_tokens: int | None = None
    pooling: str | None = None


def open_tower(pipeline: Pipeline, wanted: Wanted) -> tuple[TextProcessor, TextTower]:
    """Processor and tower of a text encoder.

    Raises:
        MmclError: a file is missing or damaged, or the model reads fewer tokens than wanted.
    """
    readers: dict[str, Callable[[Pipeline, Wanted], tuple[TextProcessor, TextTower]]] = {
        "Transformer": _transformer,
        "WordEmbeddings": _words,
        "StaticEmbedding": _static,
        "model2vec": _static,
        "BoW": _counts,
    }
    if pipeline.reads not in readers:
        raise MmclError(f"text model '{wanted.name}': holds a {pipeline.reads}; name it in model.name")
    if pipeline.reads in ("StaticEmbedding", "model2vec", "BoW") and wanted.pooling is not None:
        raise MmclError(f"model.text.pooling: '{wanted.name}' has a pooling of its own; leave it out")
    return readers[pipeline.reads](pipeline, wanted)


def pooled(
    pipeline: Pipeline,
    net: Any,
    processor: TextProcessor,
    pooling: str | None = None,
    kind: type[TextTower] = TextTower,
) -> TextTower:
    """The tower of ``net`` with the layers and the pooling behind it.

    Raises:
        MmclError: a file is missing or damaged, or net, layers and tokenizer do not belong together.
    """
    weights = None if pipeline.token_weights is None else TokenWeights.of(read_token_weights(pipeline.token_weights))
    for stored in pipeline.token_layers[:1]:
        if stored.inputs not in (None, width := int(net.config.hidden_size)):
            raise MmclError(f"{stored.folder}: reads {stored.inputs} features, but the network gives {width}")
    layers = [stored.layer for stored in pipeline.token_layers]
    pooling = pooling or pipeline.pooling
    tower = kind(net, processor, pooling=pooling, token_weights=weights, layers=layers)
    if tower.token_layers is not None:
        for stored, (_, modules) in zip(pipeline.token_layers, tower.token_layers.parts(), strict=True):
            fill_layer(stored.kind, modules, stored.folder)
    return tower


def _transformer(pipeline: Pipeline, wanted: Wanted) -> tuple[TextProcessor, TextTower]:
    net, fresh = open_net(wanted.name, pipeline.source, wanted.weights)
    tokenizer = read_tokenizer(pipeline.source)
    limit = _limit(pipeline, wanted, tightest(count_positions(net), tokenizer.model_max_length))
    if wanted.pooling == "pooler" and fresh:
        log.warning("text model '%s': its weights have no pooler; it starts anew, and is to be trained", wanted.name)
    processor = pipeline.processor(tokenizer, limit)
    return processor, pooled(pipeline, net, processor, wanted.pooling)


def _limit(pipeline: Pipeline, wanted: Wanted, positions: int) -> int:
    """How many tokens the texts may have."""
    if wanted.max_tokens is not None and wanted.max_tokens > positions:
        raise MmclError(f"model.text.max_tokens is {wanted.max_tokens}, but '{wanted.name}' reads at most {positions}")
    return wanted.max_tokens or tightest(pipeline.max_tokens, positions)


def _words(pipeline: Pipeline, wanted: Wanted) -> tuple[TextProcessor, TextTower]:
    folder = pipeline.source
    config = read_config(folder, WORDS_CONFIG)
    kind = str(config["tokenizer_class"]).rsplit(".", 1)[-1]
    if kind not in ("WhitespaceTokenizer", "TransformersTokenizerWrapper"):
        raise MmclError(f"{folder}: its WordEmbeddings split texts by a {kind}, which is not supported")
    tokenizer = WordTokenizer.read(folder) if kind == "WhitespaceTokenizer" else read_tokenizer(folder)
    table = _table(read_weights(folder), "emb_layer.weight", folder)
    net = WordVectors(*table.shape)
    if wanted.weights:
        net.load_state_dict({"vectors.weight": table})
    net.requires_grad_(bool(config.get("update_embeddings", False)))
    limit = _limit(pipeline, wanted, tightest(config.get("max_seq_length"), UNLIMITED))
    processor = pipeline.processor(tokenizer, limit, padding_id=len(table))
    return processor, pooled(pipeline, net, processor, wanted.pooling, WordTower)


def _static(pipeline: Pipeline, wanted: Wanted) -> tuple[TextProcessor, TextTower]:
    table = read_static_vectors(pipeline.source)
    tokenizer = read_tokenizer_file(pipeline.source / "tokenizer.json")
    ignored_id = unknown_id(tokenizer) if pipeline.reads == "model2vec" else None
    return static_tower(pipeline, tokenizer, table, wanted, ignored_id)


def static_tower(
    pipeline: Pipeline, tokenizer: Any, table: Tensor, wanted: Wanted, ignored_id: int | None = None
) -> tuple[TextProcessor, TextTower]:
    """The mean of the vectors in ``table`` of a text's tokens, of which ``ignored_id`` is none."""
    drop_special_tokens(tokenizer)
    entries, width = table.shape
    net = TokenMean(entries, width)
    if wanted.weights:
        net.load_state_dict({"vectors.weight": table})
    limit = _limit(pipeline, wanted, UNLIMITED)
    processor = pipeline.processor(tokenizer, limit, padding_id=entries, ignored_id=ignored_id)
    config = TextTowerConfig(name="bag:mean", args={"entries": entries, "width": width})
    return processor, around(net, config, processor)


def read_static_vectors(folder: Path) -> Tensor:
    """(V, D) float32 vectors of the tokens, with model2vec's mapping and weights of tokens multiplied into them.

    Raises:
        MmclError: they are missing or damaged.
    """
    tensors = read_weights(folder)
    if "embedding.weight" in tensors:
        return _table(tensors, "embedding.weight", folder)
    table = _table(tensors, "embeddings", folder)
    if (mapping := tensors.get("mapping")) is not None:
        if mapping.ndim != 1 or not bool(((mapping >= 0) & (mapping < len(table))).all()):
            raise MmclError(f"{folder}: its mapping names vectors that it does not have; take a fresh copy")
        table = table[mapping.long()]
    if (weights := tensors.get("weights")) is not None:
        if weights.shape != table.shape[:1]:
            raise MmclError(f"{folder}: has {len(table)} tokens but {len(weights)} weights; take a fresh copy")
        table = table * weights.float()[:, None]
    return table


def _table(tensors: dict[str, Tensor], name: str, folder: Path) -> Tensor:
    table = tensors.get(name)
    if table is None or table.ndim != 2 or not len(table):
        raise MmclError(f"{folder}: has no table of vectors '{name}'; take a fresh copy of the model")
    return table.float()


def _counts(pipeline: Pipeline, wanted: Wanted) -> tuple[TextProcessor, TextTower]:
    config = read_config(pipeline.source)
    tokenizer = WordTokenizer(list(dict.fromkeys(config["vocab"])))
    weights = weights_of({**config, "vocab": tokenizer.vocab})
    repeats = bool(config.get("cumulative_term_frequency", True))
    net = TokenCounts(len(weights), repeats)
    net.load_state_dict({"weights": weights})
    limit = _limit(pipeline, wanted, UNLIMITED)
    processor = pipeline.processor(tokenizer, limit, padding_id=len(weights))
    settings = TextTowerConfig(name="bag:counts", args={"entries": len(weights), "repeats": repeats})
    return processor, around(net, settings, processor)
