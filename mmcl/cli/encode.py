"""mmcl encode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

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


@names_columns
def encode(
    model: Model,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Rows: a file, folder or name.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder for the vectors.", show_default=False)],
    column: Annotated[
        str | None, typer.Option(help="What to encode.", show_default="image, else text, or what a table's tower reads")
    ] = None,
    modality: Annotated[
        Literal["image", "text", "table"] | None, typer.Option(help="What it holds.", show_default="as it looks")
    ] = None,
    tower: Annotated[
        str | None, typer.Option(help="The tower to encode by, if the model has several of a kind.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="The part of the source to encode.")] = None,
    label: Annotated[str | None, typer.Option(help="A column to show in search results.")] = None,
    id: Annotated[
        str | None,
        typer.Option(help="The column of ids, which searches return.", show_default="id, _id, or row numbers"),
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Of the vectors on disk; an index may have fewer bits."),
    ] = "float32",
    long: Annotated[
        Literal["truncate", "chunk", "windows"],
        typer.Option(
            help="Texts longer than the model reads: truncate cuts them; chunk takes the mean of overlapping windows; "
            "windows gives each window a vector of its own."
        ),
    ] = "truncate",
    overlap: Annotated[
        int | None, typer.Option(help="Tokens that neighbouring windows share.", show_default="an eighth of a window")
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows of a shard: what a killed process can cost.",
            show_default="a 256th, 4096 to 32768; images: 256 to 4096",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The model's prompt to put before texts.", show_default="its document or passage, if any"),
    ] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first so many dimensions.")] = None,
    separator: Separator = None,
    image_root: ImageRoot = None,
    retry_skipped: Annotated[
        bool, typer.Option("--retry-skipped", help="Try the images again that an earlier run left out.")
    ] = False,
    device: Device = "auto",
    devices: Annotated[
        str | None,
        typer.Option(help="Several, such as cuda:0,cuda:1, or a number of processes on the CPU.", show_default=False),
    ] = None,
    dtype: Dtype = "auto",
    backend: Backend = "torch",
    exact_decoding: ExactDecoding = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="What encodes: this machine, or all of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster.", show_default="that of this machine, or one that is started here"),
    ] = None,
    allow_pipe: AllowPipe = False,
) -> None:
    """Embed every row of a source into a folder of vectors. Given again, the command does what is missing; given
    several times at once, on one machine or on several with a shared folder, it shares the work."""
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.encoding import Columns, Layout, encode_source

    if address is not None and engine != "ray":
        raise MmclError(f"--address {address}: is that of a Ray cluster; give --engine ray too")
    encoder = load(model, device, dtype, backend, exact_decoding)
    if tower is not None:
        encoder = encoder.select(tower)
    rows = open_rows(source, split=split, separator=separator, root=image_root)
    if column is None and encoder.modalities == {"table"}:
        modality = "table"
    usual = [name for name in ("image", "text") if name in encoder.modalities]
    column = column or next((name for name in usual if name in rows.column_names), None)
    if column is None and modality != "table":
        known = ", ".join(rows.column_names)
        usually = usual[-1] if usual else "text"
        raise MmclError(f"{source}: no column '{usually}'; name what to encode with --column; it has {known}")
    columns = Columns(column or "", modality, label, id)
    layout = Layout(precision, shard_rows, None, long, overlap, several(devices))
    if engine == "ray":
        from mmcl.encoding.ray_engine import RayEngine, Recipe

        loading = {"device": device, "dtype": dtype, "backend": backend, "exact_decoding": exact_decoding}
        reading = {"split": split, "separator": separator, "root": image_root}
        settings = {"prompt": prompt, "truncate_dim": truncate_dim}
        recipe = Recipe(model, source, columns, str(out), tower, loading, reading, layout, settings, pipes=allow_pipe)
        layout = replace(layout, engine=RayEngine(recipe, address))
    vectors = encode_source(
        encoder,
        rows,
        columns,
        out,
        layout=layout,
        prompt=prompt,
        truncate_dim=truncate_dim,
        retry_skipped=retry_skipped,
    )
    say(f"{len(vectors):,} vectors of {vectors.dim} dimensions in {out}")
