"""A text tower's network as an ONNX graph: written once, kept under the hash of its weights."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.formats.folder import save
from mmcl.formats.weights import weights_hash
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.open_clip import OpenClipTextTower
from mmcl.models.text.plain import PlainTextTower
from mmcl.models.text.static import WordTower
from mmcl.models.text.tower import OWN_VECTOR, TextTower
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, atomic_folder, cache_dir
from mmcl.runtime.full_disk import full_disk_is_oserror

log = logging.getLogger("mmcl")

GRAPH = "onnx/model.onnx"  # where sentence-transformers and transformers.js look for it in a model's folder
LABEL = "onnx/mmcl.json"  # whose graph it is: the weights beside it may have been replaced
LAYER = "hidden_states."  # and the layer's number: name of an output
_VERSION = 1  # of the graphs that this file writes; a change makes every kept one a stranger
_EXTERNAL = 1_500_000_000  # bytes of weights from which they go to a file of their own: protobuf ends at 2 GB


def require(package: str, extra: str) -> Any:
    """An optional package.

    Raises:
        MmclError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise MmclError(
            f"this needs the package {package.split('.')[0]}{reason}: pip install 'mmcl[{extra}]'"
        ) from None


def export_onnx(towers: Towers, folder: Path) -> None:
    """Write a model folder with the text tower's graph in ``onnx/model.onnx``.

    The graph maps ``input_ids`` and ``attention_mask``, both int64 (N, L) of any size, to the token states that the
    pooling reads: ``last_hidden_state`` (N, L, width), with some poolings other names besides. Pooling and head are not
    in it. ``mmcl.load(folder, backend="onnx")`` finds it there.

    Raises:
        MmclError: the model has no text tower of transformers', or onnx is not installed.
    """
    tower, graph = exportable(towers).tower, open_graph(towers, "onnx")
    path = towers.path
    save(towers, folder)
    towers.path = path  # an export is not where the model lives
    (folder / GRAPH).parent.mkdir()
    for part in graph.parent.glob("model.onnx*"):  # and its weights, where they are in a file of their own
        shutil.copyfile(part, folder / GRAPH.replace("model.onnx", part.name))
    (folder / LABEL).write_text(json.dumps({"weights": weights_key(tower)}) + "\n", encoding="utf-8")


def open_graph(towers: Towers, extra: str) -> Path:
    """The graph of the model's text tower: from its folder, from the cache, or written into the cache now.

    Args:
        towers: whose graph is wanted.
        extra: of mmcl, that has the packages to write it with; for the message that they are missing.
    """
    embedder = exportable(towers)
    key = weights_key(embedder.tower)
    if towers.path is not None and _label(towers.path) == key:
        return towers.path / GRAPH
    kept = cache_dir("onnx") / key
    if not (kept / "model.onnx").is_file():
        log.info("writing the graph of '%s', which is done once, to %s", towers.name, kept)
        with atomic_folder(kept) as beside:
            _write(embedder, beside / "model.onnx", extra)
    return kept / "model.onnx"


def quantised(graph: Path, key: str) -> Path:
    """The graph with int8 weights and matrix products of int8: dynamic quantisation by onnxruntime.

    Every column of a weight has a scale of its own, and so does every tensor of activations, found as it goes by. Where
    the hardware has no int8 dot product, sums of full 8-bit weights overflow: one bit less is used.
    """
    kept = cache_dir("onnx") / f"{key}-int8.onnx"
    if not kept.is_file():
        quantization = require("onnxruntime.quantization", "onnx")
        log.info("quantising to int8, which is done once, to %s", kept)
        large = graph.stat().st_size > _EXTERNAL or graph.with_name(graph.name + ".data").is_file()
        with atomic_file(kept) as beside, _quiet_libraries(), full_disk_is_oserror(kept):
            quantization.quantize_dynamic(
                graph,
                beside,
                per_channel=True,
                reduce_range=True,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=large,
            )
    return kept


def exportable(towers: Towers) -> TextEmbedder:
    """The model's embedder of texts.

    Raises:
        MmclError: it has none, or one that is not of transformers.
    """
    embedder = towers.text()
    tower = embedder.tower
    if isinstance(tower, OpenClipTextTower | PlainTextTower | WordTower) or not hasattr(tower.net, "config"):
        raise MmclError(f"'{towers.name}': only text towers of transformers can be written as a graph")
    return embedder


def output_names(tower: TextTower) -> list[str]:
    """What the pooling reads of the network's output; the n-th of all layers is ``hidden_states.n``."""
    if tower.pooling in OWN_VECTOR:
        projects = "Projection" in type(tower.net).__name__
        return ["text_embeds" if projects else "pooler_output"]
    layers = int(tower.net.config.num_hidden_layers) + 1 if tower.reads_layers else 0
    return ["last_hidden_state", *(f"{LAYER}{number}" for number in range(layers))]


def weights_key(tower: TextTower) -> str:
    """Changes with the weights, the architecture, and what the pooling reads."""
    config = {key: value for key, value in tower.net.config.to_diff_dict().items() if key not in _HISTORY}
    described = [_VERSION, type(tower.net).__name__, config, output_names(tower), tower.padding.masked]
    content = json.dumps([described, weights_hash(tower.net)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


_HISTORY = ("transformers_version", "_name_or_path", "architectures", "dtype")  # of a config: not what it computes


def _label(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / LABEL).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Network(nn.Module):
    """The network with its outputs in a row, as graphs have them."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.net = tower.net
        self.names, self.masked = output_names(tower), tower.padding.masked
        self.options: dict[str, Any] = {"use_cache": False} if hasattr(tower.net.config, "use_cache") else {}
        if any(name.startswith(LAYER) for name in self.names):
            self.options["output_hidden_states"] = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        mask = attention_mask if self.masked else None
        output = self.net(input_ids=input_ids, attention_mask=mask, **self.options)
        return tuple(
            output.hidden_states[int(name.removeprefix(LAYER))] if name.startswith(LAYER) else getattr(output, name)
            for name in self.names
        )


def _write(embedder: TextEmbedder, path: Path, extra: str) -> None:
    for package in ("onnx", "onnxscript"):  # what torch's exporter imports
        require(package, extra)
    processor, tower = embedder.processor, embedder.tower
    network = _Network(tower)
    training = tower.net.training
    # Sizes other than 0 and 1, which the exporter would take for constants; both kinds of token.
    ids = torch.ones(2, min(7, processor.max_tokens), dtype=torch.int64, device=next(tower.net.parameters()).device)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    size = sum(tensor.nbytes for tensor in tower.net.state_dict().values())
    try:
        with torch.no_grad(), _quiet_libraries(), full_disk_is_oserror(path):
            torch.onnx.export(
                network.eval(),
                (ids, mask),
                path,
                input_names=["input_ids", "attention_mask"],
                output_names=network.names,
                dynamic_shapes=(free, free),
                external_data=size > _EXTERNAL,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise MmclError(f"a {type(tower.net).__name__} cannot be written as an ONNX graph: {error}"[:300]) from None
    finally:
        tower.net.train(training)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without the exporters' warnings, which are about their own insides."""
    root = logging.getLogger()  # onnxruntime's quantiser logs there, and advises a preprocessing that changes nothing
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
