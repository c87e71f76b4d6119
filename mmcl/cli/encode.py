"""mmcl encode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmcl.cli.options import (
    AllowPipe,
    Backend,
    Device,
    Dtype,
    ExactDecoding,
    ImageRoot,
    Model,
    Separator,
    load,
    names_columns,
    several,
)
from mmcl.cli.output import say
from mmcl.runtime.errors import MmclError

Input = Annotated[str, typer.Argument(metavar="INPUT", help="Rows: a file, folder or name.", show_default=False)]
VectorFolder = Annotated[Path, typer.Option(help="The folder for the vectors.", show_default=False)]
InputColumn = Annotated[
    str | None, typer.Option(help="What to encode.", show_default="image, else text, or what a table's tower reads")
]
InputModality = Annotated[
    Literal["image", "text", "table"] | None, typer.Option(help="What it holds.", show_default="as it looks")
]
OneTower = Annotated[
    str | None, typer.Option(help="The tower to encode by, if the model has several of a kind.", show_default=False)
]
InputSplit = Annotated[str | None, typer.Option(help="The part of the source to encode.")]
LabelColumn = Annotated[str | None, typer.Option(help="A column to show in search results.")]
IdColumn = Annotated[
    str | None,
    typer.Option(help="The column of ids, which searches return.", show_default="id, _id, or row numbers"),
]
Precision = Annotated[
    Literal["float32", "float16", "int8"],
    typer.Option(help="Of the vectors on disk; an index may have fewer bits."),
]
LongTexts = Annotated[
    Literal["truncate", "chunk", "windows"],
    typer.Option(
        help="Texts longer than the model reads: truncate cuts them; chunk takes the mean of overlapping windows; "
        "windows gives each window a vector of its own."
    ),
]
Overlap = Annotated[
    int | None, typer.Option(help="Tokens that neighbouring windows share.", show_default="an eighth of a window")
]
ShardRows = Annotated[
    int | None,
    typer.Option(
        help="Rows of a shard: what a killed process can cost.",
        show_default="a 256th, 4096 to 32768; images: 256 to 4096",
    ),
]
DocumentPrompt = Annotated[
    str | None,
    typer.Option(help="The model's prompt to put before texts.", show_default="its document or passage, if any"),
]
TruncateDim = Annotated[int | None, typer.Option(help="Keep the first so many dimensions.")]
RetrySkipped = Annotated[
    bool, typer.Option("--retry-skipped", help="Try the images again that an earlier run left out.")
]
Devices = Annotated[
    str | None,
    typer.Option(help="Several, such as cuda:0,cuda:1, or a number of processes on the CPU.", show_default=False),
]
FastResize = Annotated[
    bool, typer.Option("--fast-resize", help="Resize images by torch: faster, a few levels off by 1 or 2 of 255.")
]
EngineName = Annotated[
    Literal["local", "ray"], typer.Option(help="What encodes: this machine, or all of a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster.", show_default="that of this machine, or one that is started here"),
]


@names_columns
def encode(
    model: Model,
    source: Input,
    out: VectorFolder,
    column: InputColumn = None,
    modality: InputModality = None,
    tower: OneTower = None,
    split: InputSplit = None,
    label: LabelColumn = None,
    id: IdColumn = None,
    precision: Precision = "float32",
    long: LongTexts = "truncate",
    overlap: Overlap = None,
    shard_rows: ShardRows = None,
    prompt: DocumentPrompt = None,
    truncate_dim: TruncateDim = None,
    separator: Separator = None,
    image_root: ImageRoot = None,
    retry_skipped: RetrySkipped = False,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    exact_decoding: ExactDecoding = None,
    fast_resize: FastResize = False,
    engine: EngineName = "local",
    address: Address = None,
    allow_pipe: AllowPipe = False,
) -> None:
    """Embed every row of a source into a folder of vectors. Given again, the command does what is missing; given
    several times at once, on one machine or on several with a shared folder, it shares the work."""
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.encoding import Columns, Layout, encode_source
    from mmcl.encoding.corpora.opening import usual_column

    if address is not None and engine != "ray":
        raise MmclError(f"--address {address}: is that of a Ray cluster; give --engine ray too")
    encoder = load(model, device, dtype, backend, exact_decoding)
    encoder.fast_resize = fast_resize
    if tower is not None:
        encoder = encoder.select(tower)
    rows = open_rows(source, split=split, separator=separator, root=image_root)
    if column is None and encoder.modalities == {"table"}:
        modality = "table"
    if column is None:
        column = "" if modality == "table" else usual_column(encoder, rows)
    columns = Columns(column, modality, label, id)
    layout = Layout(precision, shard_rows, None, long, overlap, several(devices))
    settings: dict[str, Any] = {"prompt": prompt, "truncate_dim": truncate_dim}
    if engine == "ray":
        from mmcl.encoding.ray_engine import RayEngine, Recipe

        loading: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend}
        loading |= {"exact_decoding": exact_decoding, "fast_resize": fast_resize}
        reading = {"split": split, "separator": separator, "root": image_root}
        recipe = Recipe(model, source, columns, str(out), tower, loading, reading, layout, settings, pipes=allow_pipe)
        layout = replace(layout, engine=RayEngine(recipe, address))
    vectors = encode_source(encoder, rows, columns, out, layout=layout, **settings, retry_skipped=retry_skipped)
    say(f"{len(vectors):,} vectors of {vectors.dim} dimensions in {out}")
