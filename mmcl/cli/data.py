"""mmcl data: sample data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcl.cli.output import print_table

app = typer.Typer(help="Sample data sets.", no_args_is_help=True)


@app.command("list")
def list_samples() -> None:
    """List the sample data sets, their origin and terms."""
    from mmcl.data import samples

    rows = [[sample.name, sample.summary, sample.terms] for sample in samples.SAMPLES.values()]
    print_table(["name", "what it is", "terms"], rows)


@app.command()
def get(name: Annotated[str, typer.Argument(help="As `mmcl data list` shows it.", show_default=False)]) -> None:
    """Fetch a sample data set, or find it where it was fetched before, and print its folder."""
    from mmcl.data import samples

    print(samples.get(name))
