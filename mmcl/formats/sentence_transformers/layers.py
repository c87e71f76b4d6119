"""The modules of sentence-transformers that are layers here, of the head or between states and pooling: each reads
itself from its folder and writes itself into one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from mmcl.formats.sentence_transformers.files import CONFIG, WEIGHTS, fill, read_config, read_optional
from mmcl.formats.weights import save_tensors
from mmcl.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm, Normalize, Residual
from mmcl.models.text.token_layers import Convolution, LayerMean, Recurrence
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import write_json

SENTENCE, TOKENS = "sentence_embedding", "token_embeddings"


class LayerFormat(ABC):
    """How one kind of module is stored."""

    kind: ClassVar[str]
    """Its class there."""
    layer: ClassVar[type]
    """What it is here."""
    config: ClassVar[str] = CONFIG
    places: ClassVar[tuple[str, ...]] = (SENTENCE,)
    """What it may work on, the usual one first."""

    @abstractmethod
    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        """The layer that the settings describe, and the width that it reads; None for any.

        Raises:
            MmclError: it computes something that no layer here does.
        """

    @abstractmethod
    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        """Of the layer for features of this width."""

    def named(self, modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
        """The layer's modules by the names that their weights have there."""
        return {}


class DenseFormat(LayerFormat):
    """A dense layer, of vectors or of tokens' states."""

    kind, layer, places = "Dense", Dense, (SENTENCE, TOKENS)

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        name = activation.rsplit(".", 1)[-1].lower()
        if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
            raise MmclError(f"{folder}: its activation '{activation}' is not supported; use a model without it")
        bias, residual = bool(config.get("bias", True)), bool(config.get("use_residual", False))
        return Dense(int(config["out_features"]), bias, name, residual=residual), int(config["in_features"])

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        activation = ACTIVATIONS[layer.activation.lower()]
        return {
            "in_features": width,
            "out_features": layer.width,
            "bias": layer.bias,
            "activation_function": f"{activation.__module__}.{activation.__name__}",
            **({"use_residual": True} if layer.residual else {}),
        }

    def named(self, modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
        first = modules[0]
        return (
            {"linear": first.chain[0], "residual": first.projection}
            if isinstance(first, Residual)
            else {"linear": first}
        )


class LayerNormFormat(LayerFormat):
    """Layer normalisation of vectors."""

    kind, layer = "LayerNorm", LayerNorm

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        return LayerNorm(), int(config["dimension"])

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        return {"dimension": width}

    def named(self, modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
        return {"norm": modules[0]}


class NormalizeFormat(LayerFormat):
    """Division by the length."""

    kind, layer, places = "Normalize", Normalize, (SENTENCE, TOKENS)

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        return Normalize(), None

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        return {}


class DropoutFormat(LayerFormat):
    """Dropout, which an encoder in use does not do."""

    kind, layer = "Dropout", Dropout

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        return Dropout(float(config.get("dropout", 0.2))), None

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        return {"dropout": layer.rate}


class ConvolutionFormat(LayerFormat):
    """Convolutions along a text."""

    kind, layer, config, places = "CNN", Convolution, "cnn_config.json", (TOKENS,)

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        kernels = [int(size) for size in config["kernel_sizes"]]
        strides = config.get("stride_sizes") or [1]
        if any(size % 2 == 0 for size in kernels) or any(stride != 1 for stride in strides):
            raise MmclError(f"{folder}: a CNN with even kernels or strides moves tokens, which is not supported")
        return Convolution(int(config.get("out_channels", 256)), kernels), _renamed(config, "in", "embedding_dimension")

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        kernels = list(layer.kernels)
        sizes = {"kernel_sizes": kernels, "stride_sizes": [1] * len(kernels)}
        return {"in_word_embedding_dimension": width, "out_channels": layer.channels, **sizes}

    def named(self, modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
        return {"convs": modules[0].convs}  # type: ignore[dict-item]


class RecurrenceFormat(LayerFormat):
    """An LSTM along a text."""

    kind, layer, config, places = "LSTM", Recurrence, "lstm_config.json", (TOKENS,)

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        settings = {name: config[name] for name in ("bidirectional", "dropout") if name in config}
        layer = Recurrence(int(config["hidden_dim"]), int(config.get("num_layers", 1)), **settings)
        return layer, _renamed(config, "", "embedding_dimension")

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        return {
            "word_embedding_dimension": width,
            "hidden_dim": layer.hidden,
            "num_layers": layer.layers,
            "dropout": layer.dropout,
            "bidirectional": layer.bidirectional,
        }

    def named(self, modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
        return {"encoder": modules[0].encoder}  # type: ignore[dict-item]


class LayerMeanFormat(LayerFormat):
    """A weighted mean of the states of several layers."""

    kind, layer, places = "WeightedLayerPooling", LayerMean, (TOKENS,)

    def read(self, config: Mapping[str, Any], folder: Path) -> tuple[Any, int | None]:
        layer = LayerMean(int(config.get("layer_start", 4)), int(config.get("num_hidden_layers", 12)))
        return layer, _renamed(config, "", "embedding_dimension")

    def settings(self, layer: Any, width: int) -> dict[str, Any]:
        return {"word_embedding_dimension": width, "layer_start": layer.first, "num_hidden_layers": layer.last}

    def named(self, modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
        return {"": modules[0]}


FORMATS: dict[str, LayerFormat] = {
    made.kind: made
    for made in (
        DenseFormat(), LayerNormFormat(), NormalizeFormat(), DropoutFormat(),
        ConvolutionFormat(), RecurrenceFormat(), LayerMeanFormat(),
    )
}  # fmt: skip
"""By the class of the module."""


@dataclass(frozen=True)
class StoredLayer:
    """A layer in its folder.

    Attributes:
        folder: of the module.
        kind: a key of :data:`FORMATS`.
        layer: what it is here.
        inputs: width that it reads; None for any.
        place: what it works on: the vector of the text, or those of its tokens.
    """

    folder: Path
    kind: str
    layer: Any
    inputs: int | None
    place: str


def read_layer(kind: str, folder: Path) -> StoredLayer:
    """The layer of the class ``kind`` in ``folder``.

    Raises:
        MmclError: its settings are missing or damaged, or say something that no layer here does.
    """
    layer_format = FORMATS[kind]
    optional = kind in ("Normalize", "Dropout")
    path = folder / layer_format.config
    config = read_optional(path) if optional else read_config(folder, layer_format.config)
    place = config.get("module_input_name") or layer_format.places[0]
    if place not in layer_format.places or (config.get("module_output_name") or place) != place:
        raise MmclError(
            f"{folder}: its {kind} takes '{place}' to '{config.get('module_output_name') or place}', which is not "
            "supported; use a model without it"
        )
    try:
        layer, inputs = layer_format.read(config, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MmclError(f"{path}: damaged, or of no {kind} ({type(error).__name__}: {error})") from None
    return StoredLayer(folder, kind, layer, inputs, place)


def fill_layer(kind: str, modules: Sequence[nn.Module], folder: Path) -> None:
    """Give the modules of a layer the weights in ``folder``.

    Raises:
        MmclError: they are missing, damaged, or of other widths.
    """
    named = FORMATS[kind].named(modules)
    if named:
        fill(named[""] if "" in named else nn.ModuleDict(named), folder)


def write_layer(layer: Any, modules: Sequence[nn.Module], width: int, place: str, folder: Path) -> None:
    """Write a layer for features of this width into ``folder``."""
    layer_format = format_of(layer)
    settings = layer_format.settings(layer, width)
    if place != layer_format.places[0]:
        settings |= {"module_input_name": place, "module_output_name": place}
    if settings:
        write_json(folder / layer_format.config, settings)
    if named := layer_format.named(modules):
        module = named[""] if "" in named else nn.ModuleDict(named)
        save_tensors(folder / WEIGHTS, module.state_dict())


def format_of(layer: Any) -> LayerFormat:
    """How a layer is stored."""
    return next(each for each in FORMATS.values() if isinstance(layer, each.layer))


def _renamed(config: Mapping[str, Any], prefix: str, name: str) -> int:
    """A width that older releases call the one of words."""
    names = ["_".join(filter(None, parts)) for parts in ((prefix, name), (prefix, "word", name))]
    return int(next(config[each] for each in names if each in config))
