"""mmcl quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcl.cli.output import JsonPath, print_table, write_json


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
            hits = [
                f"{100 * judged.metrics[f'hit@{k}']:.1f} ± {_half_width(judged.intervals[f'hit@{k}']):.1f}"
                for k in (1, 5, 10)
            ]
            chance = f"{100 * judged.chance()['hit@10']:.1f}"
            rows.append([SPLITS[split], way.replace("_to_", " → "), *hits, chance])
    title = "How often the right one is among the first k, in % (95% interval)"
    print_table(["judged on", "direction", "hit@1", "hit@5", "hit@10", "chance of hit@10"], rows, title=title)
    for search in made.searches:
        print(f"{search.query:>40}: {', '.join(hit.label for hit in search.hits[:5])}")
    folder, source = made.index.parent, made.sample
    print(
        f"\nTrained in {made.training_seconds:.0f} s. Open {made.report} in a browser. Next:\n"
        f'  mmcl search {made.index} "a cat with a smile" some/picture.png\n'
        f"  mmcl eval zero-shot {folder / 'run'} sample:{source} --split test --label text\n"
        f"  mmcl train my.yaml        # your own pairs: the README shows the ten lines it takes"
    )


def _half_width(interval: tuple[float, float]) -> float:
    return 50 * (interval[1] - interval[0])
