"""mmcl train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcl.cli.config import Overrides
from mmcl.cli.options import AllowPipe
from mmcl.cli.output import JsonPath, print_table, say, write_json


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file: one experiment.", show_default=False)],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/NAME")] = None,
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
) -> None:
    """Train what a config describes: runs/NAME gets the model, metrics, checkpoints and a report."""
    from mmcl.config.load import load_config

    experiment = load_config(config, overrides or [])  # a typo is reported before anything else is imported
    import mmcl
    from mmcl.evaluation.evaluator import summary
    from mmcl.reports import judge_run, write_run_report
    from mmcl.runtime import distributed

    run = mmcl.train(experiment, out=out, resume=resume)
    if distributed.rank() != 0:
        return
    report = write_run_report(run, judge_run(run))
    write_json(json, run.metrics)
    if shown := summary(run.metrics, run.config.evaluation):
        print_table(["metric", "value"], [[key, value] for key, value in shown.items()])
    say(f"model  {run.folder / 'model'}\nreport {report}")
