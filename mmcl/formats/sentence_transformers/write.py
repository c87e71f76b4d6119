"""Encoders of texts as folders of sentence-transformers, written without that library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from mmcl.formats.sentence_transformers.files import CONFIG, WEIGHTS, fill
from mmcl.formats.sentence_transformers.layers import SENTENCE, TOKENS, fill_layer, format_of, write_layer
from mmcl.formats.sentence_transformers.read import (
    MODULES,
    POOLING_FLAGS,
    POOLING_NAMES,
    SETTINGS,
    TRANSFORMER_CONFIGS,
    read_token_weights,
)
from mmcl.formats.sentence_transformers.router import ROUTER, router_config
from mmcl.formats.sentence_transformers.towers import WORDS_CONFIG
from mmcl.formats.tokenizers import save_tokenizer
from mmcl.formats.transformers import nets
from mmcl.formats.weights import pass_on, save_tensors
from mmcl.models.heads import Head
from mmcl.models.layers import Dense, Normalize
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import UNLIMITED
from mmcl.models.text.static import TokenCounts, TokenMean, WordTower
from mmcl.models.text.token_weights import TokenWeights
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import write_json

_CLASSES = "sentence_transformers.models"


def cannot_express(embedder: TextEmbedder) -> str | None:
    """Why that library cannot compute what ``embedder`` does; None if it can."""
    tower, processor = embedder.tower, embedder.processor
    if any(isinstance(layer, Dense) and layer.norm != "none" for layer in embedder.head.layers):
        return "its dense layers have no normalisation in between"
    if isinstance(tower.net, TokenMean | TokenCounts):
        return _cannot_express_bag(embedder)
    if not (hasattr(tower.net, "save_pretrained") or isinstance(tower, WordTower)) or tower.padding.length:
        return "it opens text encoders of transformers and bags of words only"
    if isinstance(tower, WordTower) and not processor.include_prompt:
        return "its word embeddings know of no prompt that is left out of the pooling"
    if tower.token_weights is not None and tower.pooling != "mean":
        return f"it has no token weights in pooling '{tower.pooling}'"
    if tower.token_weights is not None and not processor.include_prompt:
        return "its token weights count a prompt that is left out of the pooling"
    if tower.pooling == "pooler" and not processor.include_prompt:
        return "its first token is the one behind a prompt that is left out of the pooling"
    unknown = [name for name in tower.pooling.split("+") if name not in POOLING_NAMES.values()]
    if unknown and not (tower.pooling == "pooler" and _pooler(tower.net) is not None):
        return f"it has no pooling '{unknown[0]}'"
    return None


def _cannot_express_bag(embedder: TextEmbedder) -> str | None:
    processor = embedder.processor
    if processor.ignored_id is not None:
        return "it counts unknown words, which this one leaves out"
    if processor.max_tokens < UNLIMITED:
        return f"it cuts no texts, and this one at {processor.max_tokens} tokens"
    return None


def write(towers: Towers, folder: Path) -> None:
    """Write the text towers of ``towers`` as a folder that sentence-transformers opens, with equal vectors; several as
    the routes of a router.

    It has the older spellings, which new releases read too. A BERT's own pooler goes into a dense layer.
    """
    names, conventions = towers.of_modality("text"), towers.conventions
    if len(names) == 1:
        listed = _write_modules(towers.text(names[0]), conventions.normalize, folder, "")
    else:
        routes = {name: _write_modules(towers.text(name), conventions.normalize, folder, f"{name}_") for name in names}
        write_json(folder / ROUTER, router_config(routes, conventions.text_tower))
        listed = [("", f"{_CLASSES}.Router")]
    listing = [
        {"idx": number, "name": str(number), "path": path, "type": kind} for number, (path, kind) in enumerate(listed)
    ]
    write_json(folder / MODULES, listing)
    processor = towers.text(conventions.text_tower or names[0]).processor
    settings = {
        "prompts": processor.prompts,
        "default_prompt_name": processor.default_prompt,
        "similarity_fn_name": conventions.similarity,
        "truncate_dim": conventions.truncate_dim,
    }
    write_json(folder / SETTINGS, settings)


def _write_modules(embedder: TextEmbedder, normalize: bool, folder: Path, route: str) -> list[tuple[str, str]]:
    """Write the modules of one encoder; returns where each lies, and its class."""
    listed = []
    for number, module in enumerate(_modules(embedder, normalize)):
        path = _place(module.kind, number, route)
        (folder / path).mkdir(exist_ok=True)
        module.write(folder / path)
        listed.append((path, f"{_CLASSES}.{module.kind}"))
    return listed


def read_weights(towers: Towers, folder: Path) -> None:
    """Fill the text towers of ``towers`` with what :func:`write` wrote of them.

    Raises:
        MmclError: a file is missing, damaged, or of another architecture.
    """
    names = towers.of_modality("text")
    for name in names:
        route = "" if len(names) == 1 else f"{name}_"
        for number, module in enumerate(_modules(towers.text(name), normalize=False)):
            module.read_weights(folder / _place(module.kind, number, route))


def folders_of_texts(folder: Path, name: str = "*") -> list[Path]:
    """Where :func:`write` put the tokenizer of the tower ``name``, or of each, and the weights of what reads its texts:
    in ``folder`` itself, if there is no router."""
    return sorted(folder.glob(f"{name}_0_*")) if (folder / ROUTER).is_file() else [folder]


def _place(kind: str, number: int, route: str) -> str:
    """Where a module lies in the model's folder; the first one in that itself, if there is no router."""
    return f"{route}{number}_{kind}" if number or route else ""


class _Module(ABC):
    """A module of that library made of parts of an encoder."""

    kind: str

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write its settings and weights into ``folder``."""

    @abstractmethod
    def read_weights(self, folder: Path) -> None:
        """Take the weights that :meth:`write` wrote."""


def _modules(embedder: TextEmbedder, normalize: bool) -> Iterator[_Module]:
    """Of the encoder, in order."""
    tower, head = embedder.tower, embedder.head
    if isinstance(tower.net, TokenMean | TokenCounts):
        yield (_Static if isinstance(tower.net, TokenMean) else _Counts)(embedder)
    else:
        yield (_Words if isinstance(tower, WordTower) else _Transformer)(embedder)
        yield from _token_layers(tower)
        if tower.token_weights is not None:
            yield _TokenWeights(embedder)
        yield _Pooling(embedder)
        if tower.pooling == "pooler" and (pooler := _pooler(tower.net)) is not None:
            yield _Layer(Dense(pooler.out_features, activation="tanh"), [pooler], pooler.in_features, SENTENCE)
    yield from _head_layers(head)
    if normalize:
        yield _Layer(Normalize(), [], head.dim, SENTENCE)


def _token_layers(tower: TextTower) -> Iterator[_Module]:
    width = int(tower.net.config.hidden_size)
    for layer, modules in () if tower.token_layers is None else tower.token_layers.parts():
        yield _Layer(layer, modules, width, TOKENS)
        width = layer.dim(width)


def _head_layers(head: Head) -> Iterator[_Module]:
    width = head.width
    for layer, modules in head.parts():
        yield _Layer(layer, modules, width, SENTENCE)
        width = layer.dim(width)


class _Transformer(_Module):
    kind = "Transformer"

    def __init__(self, embedder: TextEmbedder) -> None:
        self.processor, self.net = embedder.processor, embedder.tower.net
        layers = embedder.tower.token_layers
        self.all_layers = layers is not None and layers.reads_layers

    def write(self, folder: Path) -> None:
        processor = self.processor
        if processor.tokenizer.pad_token is None:  # by which that library pads
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        if self.all_layers:  # which that library does not ask for itself
            self.net.config.output_hidden_states = True
        with nets.quiet_transformers():
            self.net.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):
            pass_on(path)
        save_tokenizer(processor.tokenizer, folder)
        limit = processor.max_tokens if processor.max_tokens < UNLIMITED else None
        limits = {"max_seq_length": limit, "do_lower_case": processor.lowercase}
        write_json(folder / TRANSFORMER_CONFIGS[0], limits)

    def read_weights(self, folder: Path) -> None:
        nets.fill(self.net, folder)


class _Words(_Module):
    kind = "WordEmbeddings"

    def __init__(self, embedder: TextEmbedder) -> None:
        self.processor, self.vectors = embedder.processor, cast(nn.Embedding, embedder.tower.net.vectors)

    def write(self, folder: Path) -> None:
        save_tokenizer(self.processor.tokenizer, folder)
        words = hasattr(self.processor.tokenizer, "stop_words")
        kind = "WhitespaceTokenizer" if words else "TransformersTokenizerWrapper"
        settings = {
            "tokenizer_class": f"sentence_transformers.models.tokenizer.{kind}",
            "update_embeddings": self.vectors.weight.requires_grad,
            "max_seq_length": min(self.processor.max_tokens, 10**6),
        }
        write_json(folder / WORDS_CONFIG, settings)
        save_tensors(folder / WEIGHTS, {"emb_layer.weight": self.vectors.weight})

    def read_weights(self, folder: Path) -> None:
        fill(nn.ModuleDict({"emb_layer": self.vectors}), folder)


class _Static(_Module):
    kind = "StaticEmbedding"

    def __init__(self, embedder: TextEmbedder) -> None:
        self.processor, self.vectors = embedder.processor, cast(nn.Embedding, embedder.tower.net.vectors)

    def write(self, folder: Path) -> None:
        save_tokenizer(self.processor.tokenizer, folder)
        save_tensors(folder / WEIGHTS, {"embedding.weight": self.vectors.weight})

    def read_weights(self, folder: Path) -> None:
        fill(nn.ModuleDict({"embedding": self.vectors}), folder)


class _Counts(_Module):
    kind = "BoW"

    def __init__(self, embedder: TextEmbedder) -> None:
        self.processor, self.net = embedder.processor, cast(TokenCounts, embedder.tower.net)

    def write(self, folder: Path) -> None:
        save_tokenizer(self.processor.tokenizer, folder)
        settings = {
            **_weighted(self.processor.tokenizer, self.net.weights.tolist()),
            "cumulative_term_frequency": self.net.repeats,
        }
        write_json(folder / CONFIG, settings)
        save_tensors(folder / WEIGHTS, {"weights": self.net.weights})

    def read_weights(self, folder: Path) -> None:
        fill(self.net, folder)


class _TokenWeights(_Module):
    kind = "WordWeights"

    def __init__(self, embedder: TextEmbedder) -> None:
        self.tokenizer = embedder.processor.tokenizer
        self.weights = cast(TokenWeights, embedder.tower.token_weights)

    def write(self, folder: Path) -> None:
        values = self.weights.values().cpu()
        write_json(folder / CONFIG, _weighted(self.tokenizer, values.tolist()))
        save_tensors(folder / WEIGHTS, {"emb_layer.weight": values[:, None].contiguous()})

    def read_weights(self, folder: Path) -> None:
        values = read_token_weights(folder)
        if len(values) != len(self.weights.log_weight):
            raise MmclError(f"{folder}: not as many weights as the tokenizer has tokens")
        self.weights.load_state_dict(TokenWeights.of(values).state_dict())


def _weighted(tokenizer: Any, weights: Sequence[float]) -> dict[str, Any]:
    """Settings that give each token its weight."""
    vocabulary = tokenizer.convert_ids_to_tokens(range(len(weights)))
    by_token = dict(zip(vocabulary, weights, strict=True))
    return {"vocab": vocabulary, "word_weights": by_token, "unknown_word_weight": 1.0}


class _Pooling(_Module):
    kind = "Pooling"

    def __init__(self, embedder: TextEmbedder) -> None:
        self.tower, self.include_prompt = embedder.tower, embedder.processor.include_prompt

    def write(self, folder: Path) -> None:
        names = self.tower.pooling.split("+")
        theirs = {ours: name for name, ours in POOLING_NAMES.items()}
        modes = ["cls" if name == "pooler" else theirs[name] for name in names]
        width = self.tower.width // len(names)
        config: dict[str, Any] = {"word_embedding_dimension": width}
        if modes == [mode for mode in POOLING_FLAGS.values() if mode in modes]:
            config |= {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
        else:  # flags cannot say another order
            config["pooling_mode"] = modes
        write_json(folder / CONFIG, config if self.include_prompt else config | {"include_prompt": False})

    def read_weights(self, folder: Path) -> None:
        """It has none."""


class _Layer(_Module):
    """A layer of the head, or of the states of tokens."""

    def __init__(self, layer: Any, modules: Sequence[nn.Module], width: int, place: str) -> None:
        self.layer, self.modules, self.width, self.on = layer, modules, width, place
        self.kind = format_of(layer).kind

    def write(self, folder: Path) -> None:
        write_layer(self.layer, self.modules, self.width, self.on, folder)

    def read_weights(self, folder: Path) -> None:
        fill_layer(self.kind, self.modules, folder)


def _pooler(net: Any) -> nn.Linear | None:
    """The dense layer before a tanh that BERT and its kin put on the first token's state; None for other models."""
    pooler = getattr(net, "pooler", None)
    if not isinstance(pooler, nn.Module) or {name for name, _ in pooler.named_children()} != {"dense", "activation"}:
        return None
    return cast(nn.Linear, pooler.dense) if isinstance(pooler.activation, nn.Tanh) else None
