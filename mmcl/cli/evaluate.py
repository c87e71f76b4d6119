"""mmcl eval: judge a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mmcl.cli.output import JsonPath, print_table, write_json
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.evaluation import Scores

app = typer.Typer(help="Judge a model.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A model or run folder, or a name.", show_default=False)]
Source = Annotated[str, typer.Argument(help="Rows: a file, folder or name.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="The part of the source to read.")]
ImageColumn = Annotated[str, typer.Option(help="The column of pictures.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]


@app.command()
def retrieval(
    model: Model,
    source: Source,
    split: Split = None,
    image: ImageColumn = "image",
    text: Annotated[str, typer.Option(help="The column of captions, one or a list a row.")] = "text",
    k: Annotated[str, typer.Option("-k", help="Cut-offs.")] = "1,5,10",
    device: Device = "auto",
    json: JsonPath = None,
) -> None:
    """Find texts by picture and pictures by text, exactly, with 95% intervals. A tie never helps."""
    import mmcl
    from mmcl.data.sources import open_source
    from mmcl.evaluation.rows import retrieval_of_rows
    from mmcl.runtime.device import pick_device

    encoder = mmcl.load(model).to(pick_device(device))
    if not all(number.strip().isdigit() for number in k.split(",")):
        raise MmclError(f"-k {k}: expected cut-offs like 1,5,10")
    ks = [int(number) for number in k.split(",")]
    scores = retrieval_of_rows(encoder, open_source(source, split=split), image=image, text=text, ks=ks)
    write_json(json, {way: judged.to_dict() for way, judged in scores.items()})
    print_scores(scores)


@app.command("zero-shot")
def zero_shot(
    model: Model,
    source: Source,
    label: Annotated[str, typer.Option(help="The column of class names.", show_default=False)],
    split: Split = None,
    image: ImageColumn = "image",
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt with {}, or the name of a set of them.", show_default="{}")
    ] = None,
    device: Device = "auto",
    json: JsonPath = None,
) -> None:
    """Classify pictures by the names of the classes alone."""
    import mmcl
    from mmcl.data.sources import open_source
    from mmcl.evaluation.rows import zero_shot_of_rows
    from mmcl.runtime.device import pick_device

    encoder = mmcl.load(model).to(pick_device(device))
    templates = template[0] if template and len(template) == 1 and "{" not in template[0] else template or ("{}",)
    scores = zero_shot_of_rows(encoder, open_source(source, split=split), image=image, label=label, templates=templates)
    write_json(json, scores.to_dict())
    chance, rows = scores.chance(), []
    for name, value in scores.metrics.items():
        low, high = scores.intervals[name]
        rows.append([name, value, f"{low:.4f} – {high:.4f}", chance.get(name, "–")])
    print_table(["metric", "value", "95% interval", "chance"], rows)


def print_scores(scores: dict[str, Scores]) -> None:
    """One table a direction: the metrics, their intervals, and what chance would give."""
    for way, judged in scores.items():
        chance, rows = judged.chance(), []
        for name, value in judged.metrics.items():
            low, high = judged.intervals[name]
            rows.append([name, value, f"{low:.4f} – {high:.4f}", chance.get(name, "–")])
        title = f"{way}: {judged.queries:,} queries, corpus of {judged.corpus:,}"
        print_table(["metric", "value", "95% interval", "chance"], rows, title=title)
