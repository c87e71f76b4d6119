"""mmcl models and mmcl export: what can be named in a config, and models for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmcl.cli.output import say


def export(
    model: Annotated[str, typer.Argument(help="A model or run folder, or a name.", show_default=False)],
    to: Annotated[
        Literal["open-clip", "transformers", "sentence-transformers", "onnx"],
        typer.Option(help="The library to write for.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
) -> None:
    """Write a model as a folder that another library opens, with equal outputs there."""
    from mmcl.formats.export import export as run
    from mmcl.formats.open import open_model

    folder = run(open_model(model), to, out)
    opened = {
        "open-clip": f'open_clip.create_model_and_transforms("local-dir:{folder}")',
        "transformers": f'AutoModel.from_pretrained("{folder}")',
        "sentence-transformers": f'SentenceTransformer("{folder}")',
        "onnx": f'mmcl.load("{folder}", backend="onnx")',
    }
    say(f"{folder}: opens by {opened[to]}")
