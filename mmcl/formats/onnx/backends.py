"""Text towers that run in onnxruntime or OpenVINO instead of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.formats.onnx.graph import LAYER, exportable, open_graph, output_names, quantised, require, weights_key
from mmcl.models.towers import Towers
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import atomic_folder, cache_dir
from mmcl.runtime.full_disk import full_disk_is_oserror

Session: TypeAlias = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]
"""(input_ids, attention_mask), both int64 (N, L), to the graph's outputs."""


def open_backend(towers: Towers, backend: str) -> Towers:
    """Let the networks of text towers run elsewhere. Tokenizing, pooling and head stay what and where they are.

    Args:
        towers: on the CPU; it is changed. Image towers stay as they are.
        backend: one of
            ``torch``: nothing changes;
            ``onnx``: onnxruntime, float32, equal to torch within 1e-5;
            ``onnx-int8``: onnxruntime with int8 products (dynamic quantisation of weights and activations);
            ``openvino``: OpenVINO, float32, equal to torch within 1e-5;
            ``openvino-int8``: OpenVINO with int8 weights (NNCF's weight compression, no calibration data): a quarter of
            the memory; products are int8 where the CPU has them (AVX512-VNNI, AMX), and no faster elsewhere.

    The graph is written at the first use and kept in the cache, see ``mmcl.formats.onnx.graph``. A session has as many
    threads as torch has when it is opened. It cannot learn.

    Returns:
        ``towers``.

    Raises:
        MmclError: no such backend, its packages are not installed, or a text tower is not one of transformers'.
    """
    if backend == "torch":
        return towers
    openers = {
        "onnx": _open_onnx,
        "onnx-int8": _open_onnx,
        "openvino": _open_openvino,
        "openvino-int8": _open_openvino,
    }
    if backend not in openers:
        raise MmclError(f"backend '{backend}' is not known; {nearest(backend, ['torch', *openers])}")
    for name in towers.of_modality("text") or ["text"]:  # of a model without one, that is the error
        part = towers.select(name)
        tower = exportable(part).tower
        session = openers[backend](part, backend.endswith("-int8"))
        tower.net = SessionNet(tower.net.config, session, output_names(tower), backend)
    return towers.eval()


class SessionNet(nn.Module):
    """In the place of a transformers model: its outputs, computed by a session.

    Attributes:
        config: of the transformers model.
        backend: what the session runs in.
    """

    def __init__(self, config: Any, session: Session, names: Sequence[str], backend: str) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        self._session, self._names = session, list(names)
        # A model is where its parameters are, and there may be no others.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SimpleNamespace:
        """What the model gives: ``last_hidden_state`` (N, L, width), ``hidden_states``, ``pooler_output``, as it has.

        Raises:
            MmclError: in training.
        """
        if self.training:
            raise MmclError(f"an encoder on {self.backend} cannot learn; load it with backend='torch' to train it")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        arrays = self._session(*(tensor.long().cpu().contiguous().numpy() for tensor in (input_ids, mask)))
        outputs = dict(
            zip(self._names, (torch.from_numpy(array).to(input_ids.device) for array in arrays), strict=True)
        )
        layers = tuple(outputs.pop(name) for name in self._names if name.startswith(LAYER))
        return SimpleNamespace(hidden_states=layers, **outputs)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refused: the weights are in the session's own form.

        Raises:
            MmclError: always.
        """
        raise MmclError(f"an encoder on {self.backend} holds no weights to save; load it with backend='torch'")


def _open_onnx(towers: Towers, int8: bool) -> Session:
    runtime = require("onnxruntime", "onnx")
    graph = open_graph(towers, "onnx")
    if int8:
        graph = quantised(graph, weights_key(exportable(towers).tower))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> Sequence[np.ndarray]:
        outputs: Sequence[np.ndarray] = session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})
        return outputs

    return run


def _open_openvino(towers: Towers, int8: bool) -> Session:
    openvino = require("openvino", "openvino")
    graph = open_graph(towers, "openvino")
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # torch computes on the same cores between two calls
        # Left to itself, it computes in bfloat16 where the CPU has that.
        **({} if int8 else {"INFERENCE_PRECISION_HINT": "f32"}),
    }
    core = openvino.Core()
    if int8:
        graph = _compressed(core, graph, weights_key(exportable(towers).tower))
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> Sequence[np.ndarray]:
        return list(compiled([input_ids, attention_mask]).values())

    return run


def _compressed(core: Any, graph: Path, key: str) -> Path:
    """The graph in OpenVINO's own format with int8 weights, one scale and zero point a column."""
    kept = cache_dir("onnx") / f"{key}-openvino-int8"
    if not kept.is_dir():
        nncf = require("nncf", "openvino")
        openvino = require("openvino", "openvino")
        model = nncf.compress_weights(core.read_model(graph), mode=nncf.CompressWeightsMode.INT8_ASYM)
        with atomic_folder(kept) as beside, full_disk_is_oserror(kept):
            openvino.save_model(model, beside / "openvino_model.xml", compress_to_fp16=False)
    return kept / "openvino_model.xml"
