"""mmcl config: the schema of experiment files, and a check of one."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from mmcl.cli.options import AllowPipe
from mmcl.cli.output import JsonPath, print_table, say, write_json

app = typer.Typer(rich_markup_mode=None, help="Experiment files.", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as training.lr=3e-4.")
]


@app.command(short_help="Print the JSON Schema of experiment files.")
def schema() -> None:
    """Print the JSON Schema of experiment files, by which editors complete and check them."""
    from mmcl.config import Config

    say(json_.dumps(Config.model_json_schema(), indent=2))


@app.command(short_help="Read what a config names, and say what it would do.")
def check(
    config: Annotated[Path, typer.Argument(help="A YAML file: one experiment.", show_default=False)],
    overrides: Overrides = None,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
) -> None:
    """Read data and model of a config without training, and say what it would do.

    All that `mmcl train` finds wrong before its first step is found here. What is read stays in the cache, where the
    run finds it.
    """
    from mmcl.config.load import load_config

    experiment = load_config(config, overrides or [])
    from mmcl.training.check_config import check_config

    facts = check_config(experiment)
    write_json(json, facts)
    reasons = facts.pop("no_exports")
    judged = {f"judged on: {name}": f"{of['data']}, {of['skipped']:,} skipped" for name, of in facts["judged"].items()}
    rows = {**facts, "judged": "", **judged, "exports": ", ".join(facts["exports"])}
    rows = {name: f"{value:,}" if isinstance(value, int) else value for name, value in rows.items() if value != ""}
    labels = {"negatives": "compared with"}  # 127 negatives per query
    print_table([str(config), ""], [[labels.get(name, name.replace("_", " ")), of] for name, of in rows.items()])
    for target, reason in reasons.items():
        say(f"no export to {target}: {reason}")
