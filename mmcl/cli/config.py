"""mmcl config: the schema of experiment files."""

from __future__ import annotations

import json

import typer

app = typer.Typer(help="Experiment files.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    """Keeps `config` a group while it has one command."""


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, by which editors complete and check them."""
    from mmcl.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))
