"""mmcl quickstart."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmcl.cli.output import JsonPath, print_table, say, write_json


def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"), json: JsonPath = None
) -> None:
    """Train, encode, index, evaluate and search on real sample data, in a few minutes on two cores."""
    from mmcl.quickstart import SPLITS
    from mmcl.quickstart import quickstart as run

    made = run(out)
    write_json(json, made.to_dict())
    rows = []
    for split, ways in made.scores.items():
        for way, judged in ways.items():
            hits = [_percent(judged.metrics[name], judged.intervals[name]) for name in ("hit@1", "hit@5", "hit@10")]
            chance = f"{100 * judged.chance()['hit@10']:.1f}"
            rows.append([SPLITS[split], way.replace("_to_", " → "), *hits, chance])
    title = "Held-out images: how often the right one is among the first k, in %"
    print_table(["", "", "hit@1", "hit@5", "hit@10", "chance@10"], rows, title=title)
    say("Searching the held-out images:")
    for search in made.searches:
        say(f"  {search.query:22} {', '.join(hit.label for hit in search.hits[:4])}")
    folder, source, mmcl = made.index.parent, made.sample, _command()
    say(
        f"\nTrained in {made.training_seconds:.0f} s. Open {made.report} in a browser. Next:\n"
        f'  {mmcl} search {made.index} "a cat with a smile" some/image.png\n'
        f"  {mmcl} eval zero-shot {folder / 'run'} sample:{source} --split test --label text\n"
        f"  {mmcl} train my.yaml    # your own pairs: the README shows the few lines it takes"
    )


def _command() -> str:
    """How this program was called: `mmcl` if that finds it, else its path from here."""
    called = Path(sys.argv[0])
    return "mmcl" if shutil.which("mmcl") == str(called) else os.path.relpath(called)


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} ± {50 * (interval[1] - interval[0]):.1f}"
