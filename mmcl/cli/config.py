"""mmcl config: the schema of experiment files."""

from __future__ import annotations

import json

import typer

from mmcl.cli.output import say

app = typer.Typer(rich_markup_mode=None, help="Experiment files.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    """Keeps `config` a group while it has one command."""


@app.command(short_help="Print the JSON Schema of experiment files.")
def schema() -> None:
    """Print the JSON Schema of experiment files, by which editors complete and check them."""
    from mmcl.config import Config

    say(json.dumps(Config.model_json_schema(), indent=2))
