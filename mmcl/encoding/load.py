"""Any model as an encoder."""

from __future__ import annotations

from pathlib import Path

import torch

from mmcl.encoding.encoder import Encoder
from mmcl.formats.onnx.backends import open_backend
from mmcl.formats.open import open_model
from mmcl.runtime.device import pick_device
from mmcl.runtime.errors import MmclError


def load(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    backend: str = "torch",
    exact_decoding: bool | None = None,
    fast_resize: bool = False,
) -> Encoder:
    """Open an encoder.

    Args:
        name: one of
            a model folder, or a run folder (its ``model/`` is taken);
            an open_clip model and the tag of its weights, ``ViT-B-32/laion2b_s34b_b79k``, or a checkpoint file of it,
            ``ViT-B-32/path/of/epoch_32.pt``;
            a checkpoint file alone, where its tensors tell the architecture;
            ``hf-hub:org/name``, or a folder with an ``open_clip_config.json``;
            a folder or hub name of a transformers ``CLIPModel`` or ``SiglipModel``, of a sentence-transformers,
            model2vec or transformers text encoder, of LoRA adapters for one as peft saves them, or ``sample:minilm``.
        device: where its weights go; ``auto`` is a GPU where there is one, as on the command line.
        dtype: what ``encode`` computes in: ``float32``, ``bfloat16``, ``int8`` (see :meth:`Encoder.set_compute`), or
            ``auto`` for bfloat16 where the hardware multiplies it natively. A ``backend`` other than torch computes
            texts in a precision of its own.
        backend: what ``encode`` runs texts with: ``torch``; ``onnx`` or ``openvino``, or their quantised forms
            ``onnx-int8`` and ``openvino-int8``, from the extras of these names.
        exact_decoding: decode large JPEG files at their full size, see :attr:`Encoder.exact_decoding`; as the model
            was trained if None.
        fast_resize: resize images by torch rather than Pillow, see :attr:`Encoder.fast_resize`.

    Raises:
        MmclError: there is no such model, it is damaged, a newer mmcl wrote it, the name computes another activation
            than its weights were trained with, or ``dtype`` or ``backend`` cannot be had.
    """
    place = pick_device(str(device))
    encoder = Encoder(open_model(name).to(place))
    encoder.eval()
    encoder.set_compute(dtype)
    if exact_decoding is not None:
        encoder.exact_decoding = exact_decoding
    encoder.fast_resize = fast_resize
    if backend == "torch":
        return encoder
    if dtype == "int8" or (dtype == "bfloat16" and encoder.modalities == {"text"}):
        raise MmclError(f"dtype {dtype}: the backend '{backend}' computes in a precision of its own; leave dtype out")
    encoder.keep_weights_hash()
    open_backend(encoder.towers, backend)
    return encoder
