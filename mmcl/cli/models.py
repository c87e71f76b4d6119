"""The options of the commands that run a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmcl.encoding.encoder import Encoder

log = logging.getLogger("mmcl")

Model = Annotated[str, typer.Argument(help="A model or run folder, or a name.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Dtype = Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16, auto.")]
Backend = Annotated[str, typer.Option(help="What runs texts: torch, onnx, openvino, onnx-int8, openvino-int8.")]

ExactDecoding = Annotated[
    bool | None,
    typer.Option(
        "--exact-decoding/--fast-decoding",
        help="Decode large JPEGs at full size; fast: at a fraction, vectors differ by up to 8e-3.",
        show_default="as the model was trained",
    ),
]


def _allow_pipe(allowed: bool) -> bool:
    if allowed:
        from mmcl.data.sources.tar.shards import allow_pipes

        allow_pipes()
    return allowed


AllowPipe = Annotated[
    bool, typer.Option("--allow-pipe", callback=_allow_pipe, help="Run the commands of pipe: sources, in a shell.")
]


def load(
    model: str, device: str, dtype: str = "auto", backend: str = "torch", exact_decoding: bool | None = None
) -> Encoder:
    """The model as the options ask for it."""
    import mmcl

    encoder = mmcl.load(model, device=device, dtype=dtype, backend=backend, exact_decoding=exact_decoding)
    # The same model gives other numbers in another precision, in their third or fourth digit.
    how = encoder.computes_in if backend == "torch" else f"{backend} for texts"
    log.info("%s: computed in %s on %s", model, how, encoder.device.type)
    return encoder
