"""mmcl data: sample data sets, a check of one's own, and a picture of what a model sees of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcl.cli.config import Overrides
from mmcl.cli.options import AllowPipe, ImageRoot, Separator, names_columns
from mmcl.cli.output import JsonPath, print_table, say, write_json

if TYPE_CHECKING:
    from mmcl.data.check import Check

app = typer.Typer(
    rich_markup_mode=None, help="Sample data sets; your own data checked and drawn.", no_args_is_help=True
)

_NAMED = 3  # rows named in the table; all are in the JSON file


@app.command("list")
def list_samples() -> None:
    """List the sample data sets, their origin and terms."""
    from mmcl.data import samples

    listed = samples.SAMPLES.values()
    print_table(["name", "what it is"], [[sample.name, sample.summary] for sample in listed])
    # Sentences with addresses, which a column of the table would break.
    say(*(f"terms of {sample.name}: {sample.terms}" for sample in listed))


@app.command(short_help="Fetch a data set and print its folder.")
def get(
    name: Annotated[
        str, typer.Argument(help="As `mmcl data list` shows it, or torchvision:CIFAR10 and so on.", show_default=False)
    ],
) -> None:
    """Fetch a sample or a data set of torchvision, or find it where it was fetched before, and print its folder."""
    from mmcl.data import samples
    from mmcl.data.sources import torchvision_sets

    key, _, rest = name.partition(":")
    say(torchvision_sets.fetch(rest) if key == "torchvision" and rest else samples.get(name))


@app.command(short_help="Read all images and captions once; say what is wrong.")
@names_columns
def check(
    source: Annotated[str, typer.Argument(help="A file, folder, name or tar shards.", show_default=False)],
    split: Annotated[str | None, typer.Option(help="The part of the source to read.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images.", show_default="image")] = None,
    text: Annotated[str | None, typer.Option(help="The column of captions.", show_default="text")] = None,
    model: Annotated[str | None, typer.Option(help="A model or run folder, or a name: count its tokens.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side that images will be resized to; faster.")] = None,
    separator: Separator = None,
    image_root: ImageRoot = None,
    allow_pipe: AllowPipe = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another split of the source, or another source (SOURCE:SPLIT), such as the training rows: list what "
            "stands there too. Repeat it.",
            show_default=False,
        ),
    ] = None,
    json: JsonPath = None,
) -> None:
    """Read all images and captions once and say what is wrong with them.

    Unreadable images, rows without captions, what repeats exactly or nearly, what stands in --against as well, sizes,
    shapes, formats and lengths. With --json every such row is listed in the file.
    """
    from mmcl.data.check import Tokens, check_source

    tokens = None
    if model is not None:
        import mmcl

        processor = mmcl.load(model).towers.text().processor
        tokens = Tokens(processor.tokenize, processor.max_tokens)
    found = check_source(
        source,
        split=split,
        image=image,
        text=text,
        size=size,
        separator=separator,
        root=image_root,
        against=against or (),
        tokens=tokens,
    )
    write_json(json, {**found.facts, "advice": found.advice})
    print_check(found)


@app.command(short_help="Draw what a model sees of the first rows.")
def show(
    config: Annotated[Path, typer.Argument(help="A YAML file: one experiment.", show_default=False)],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, max=200, help="How many to draw.")] = 8,
    out: Annotated[Path | None, typer.Option(help="The picture, a .png file.", show_default="NAME-views.png")] = None,
    allow_pipe: AllowPipe = False,
) -> None:
    """Draw what a model that is trained by a config sees of the first rows: each image as it is stored and as it is
    changed at random, each text as the tokens that are read of it."""
    from mmcl.config.load import load_config

    experiment = load_config(config, overrides or [])
    from mmcl.reports import write_contact_sheet

    say(write_contact_sheet(experiment, out or Path(f"{experiment.name}-views.png"), rows))


def print_check(found: Check) -> None:
    """The facts as a table, the most frequent captions, and the advice."""
    facts = found.facts
    lines: list[list[object]] = [["rows", f"{facts['rows']:,}"]]
    if "damaged_shards" in facts:
        lines.append(["damaged shards", _named(facts["damaged_shards"])])
    if "images" in facts:
        lines += _image_lines(facts["images"])
    if "captions" in facts:
        lines += _caption_lines(facts["captions"])
    if "pairs" in facts:
        pairs = facts["pairs"]
        lines.append(["repeated pairs", _groups(_share(pairs["repeated"], pairs["count"]), pairs["repeated_rows"])])
    if "leaks" in facts:
        lines.append(["rows that stand in --against", _elsewhere(facts["leaks"]["rows"], facts["rows"])])
        if "images" in facts["leaks"]:
            lines.append(
                ["images there with another caption", _elsewhere(facts["leaks"]["images"]["rows"], facts["rows"])]
            )
    print_table([facts["source"], "number, or smallest / median / largest"], lines)
    if frequent := facts.get("captions", {}).get("most_frequent"):
        print_table(["times", "most frequent captions"], [[f"{line['count']:,}", line["text"]] for line in frequent])
    for part, default in (("images", "image"), ("captions", "text")):
        if part not in facts:
            choice = f" one of {', '.join(facts['columns'])}" if facts["columns"] else ""
            say(f"No {part} checked: there is no '{default}' to read; name{choice or ' it'} with --{default}")
    say("\n".join(found.advice) or "Nothing looks off.")


def _image_lines(images: dict[str, Any]) -> list[list[object]]:
    readable = images["readable"]
    lines: list[list[object]] = [
        ["unreadable images", _named(images["unreadable"])],
        ["repeated images", _groups(_share(images["repeated"], readable), images["repeated_rows"])],
        ["images that look like another", _groups(_share(images["near"], readable), images["near_rows"])],
        ["width, pixels", _spread(images["width"])],
        ["height, pixels", _spread(images["height"])],
        ["longer to shorter side", _spread(images["longer_to_shorter_side"])],
        ["beyond 2 to 1", _share(images["beyond_2_to_1"], readable)],
        ["formats", ", ".join(f"{name} {count:,}" for name, count in images["formats"].items()) or "–"],
        ["modes", ", ".join(f"{name} {count:,}" for name, count in images["modes"].items()) or "–"],
    ]
    if "size" in images:
        lines.append([f"smaller than {images['size']}", _share(images["smaller_than_size"], readable)])
    return lines


def _caption_lines(captions: dict[str, Any]) -> list[list[object]]:
    empty = captions["empty"]
    lines: list[list[object]] = [
        ["captions", f"{captions['count']:,}"],
        ["captions a row", _spread(captions["a_row"])],
        ["rows without a caption", f"{len(empty):,}" + (f": {', '.join(empty[:_NAMED])}" if empty else "")],
        ["repeated captions", _groups(_share(captions["repeated"], captions["count"]), captions["repeated_rows"])],
        [
            "repeated but for case and punctuation",
            _groups(_share(captions["near"], captions["count"]), captions["near_rows"]),
        ],
        ["words", _spread(captions["words"])],
        ["characters", _spread(captions["characters"])],
    ]
    if "tokens" in captions:
        lines.append(["tokens", _spread(captions["tokens"])])
        lines.append([f"longer than {captions['max_tokens']} tokens", _share(captions["cut"], captions["count"])])
    return lines


def _named(problems: list[dict[str, str]]) -> str:
    """How many, and what is wrong with the first."""
    first = "; ".join(f"{problem['id']}: {problem['reason']}" for problem in problems[:_NAMED])
    return f"{len(problems):,}" + (f": {first}" if problems else "")


def _groups(share: str, groups: list[list[str]]) -> str:
    """The share, and the first groups of rows."""
    shown = "; ".join(" = ".join(group[:_NAMED]) for group in groups[:_NAMED])
    return f"{share}: {shown}{' …' if len(groups) > _NAMED else ''}" if groups else share


def _elsewhere(rows: list[dict[str, str]], total: int) -> str:
    """The share of rows, and what the first are elsewhere."""
    return _groups(_share(len(rows), total), [[row["id"], f"{row['in']}: {row['as']}"] for row in rows])


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(total, 1):.2%})"


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "–"
    return " / ".join(f"{values[name]:,.4g}" if values[name] < 100 else f"{values[name]:,.0f}" for name in values)
