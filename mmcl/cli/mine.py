"""mmcl mine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmcl.cli.options import AllowPipe, Device, Dtype, ImageRoot, Model, Separator, Source, Split, load, names_columns
from mmcl.cli.output import JsonPath, print_table, say, write_json

NegativesFile = Annotated[Path, typer.Option(help="The .parquet or .jsonl file to write.", show_default=False)]
Anchor = Annotated[
    str | None, typer.Option(help="The column that negatives are for.", show_default="image, else anchor")
]
Positive = Annotated[
    str | None, typer.Option(help="The column of what belongs to it.", show_default="text, else positive")
]
NegativeCount = Annotated[int, typer.Option(min=1, help="Negatives of each row.")]
Ranks = Annotated[
    tuple[int, int],
    typer.Option(help="Take them from these ranks among the nearest: 10 50 leaves out the first ten."),
]
Margin = Annotated[
    float | None, typer.Option(help="Less similar than the positive by this cosine.", show_default=False)
]
RelativeMargin = Annotated[
    float | None, typer.Option(help="The same as a share of the positive's: 0.05 is 95% of it.", show_default=False)
]
MaxScore = Annotated[float | None, typer.Option(help="Largest cosine of a negative.", show_default=False)]
DuplicateScore = Annotated[
    float, typer.Option(help="What is this similar to the anchor or the positive is the same thing.")
]
Guide = Annotated[
    str | None,
    typer.Option(help="A model: what it finds closer than the positive is no negative.", show_default=False),
]
Choice = Annotated[Literal["top", "random"], typer.Option(help="The nearest that pass, or drawn from all that do.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
TooFew = Annotated[Literal["keep", "drop"], typer.Option(help="Rows for which fewer negatives pass than --count.")]
CorpusRows = Annotated[
    str | None,
    typer.Option(help="Where negatives come from: a file, folder or name.", show_default="the positives"),
]
CorpusColumn = Annotated[str, typer.Option(help="The column of --corpus.")]
ByIndex = Annotated[bool, typer.Option("--index", help="Search an index: faster for millions of items, may miss some.")]
Paraphrases = Annotated[bool, typer.Option("--paraphrases", help="Write the most similar pairs of --column instead.")]
ParaphraseColumn = Annotated[str, typer.Option(help="The column of --paraphrases.")]
PairCount = Annotated[int, typer.Option("--pairs", min=1, help="How many, with --paraphrases.")]
MinScore = Annotated[float, typer.Option(help="Smallest cosine of a pair, with --paraphrases.")]
AnchorPrompt = Annotated[str | None, typer.Option(help="The model's prompt for anchors.", show_default="query, if any")]
PositivePrompt = Annotated[
    str | None,
    typer.Option(help="For positives and negatives.", show_default="document or passage, if any"),
]
AnchorTower = Annotated[
    str | None, typer.Option(help="The tower of anchors, if the model has several of a kind.", show_default=False)
]
PositiveTower = Annotated[str | None, typer.Option(help="That of positives.", show_default=False)]


@names_columns
def mine(
    model: Model,
    source: Source,
    out: NegativesFile,
    anchor: Anchor = None,
    positive: Positive = None,
    count: NegativeCount = 5,
    range: Ranks = (0, 100),
    margin: Margin = None,
    relative_margin: RelativeMargin = None,
    max_score: MaxScore = None,
    duplicate_score: DuplicateScore = 0.99,
    guide: Guide = None,
    choice: Choice = "top",
    seed: Seed = 0,
    too_few: TooFew = "keep",
    corpus: CorpusRows = None,
    corpus_column: CorpusColumn = "text",
    by_index: ByIndex = False,
    paraphrases: Paraphrases = False,
    column: ParaphraseColumn = "text",
    best: PairCount = 10_000,
    min_score: MinScore = -1.0,
    anchor_prompt: AnchorPrompt = None,
    positive_prompt: PositivePrompt = None,
    anchor_tower: AnchorTower = None,
    positive_tower: PositiveTower = None,
    split: Split = None,
    separator: Separator = None,
    image_root: ImageRoot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    allow_pipe: AllowPipe = False,
    json: JsonPath = None,
) -> None:
    """Find hard negatives for pairs, or paraphrases in a corpus, and write a file to train on."""
    from mmcl.data.sources.tar.rows import open_rows
    from mmcl.encoding.prompts import document_prompt, document_tower, query_prompt, query_tower
    from mmcl.retrieval.mining import Rules
    from mmcl.retrieval.similar.items import Side
    from mmcl.retrieval.similar.negatives import Corpus, Options, Pairs, mine_negatives, usual_columns
    from mmcl.retrieval.similar.paraphrases import mine_paraphrases
    from mmcl.retrieval.similar.table_file import check_suffix

    check_suffix(out)
    encoder = load(model, device, dtype)
    rows = open_rows(source, split=split, separator=separator, root=image_root)
    if paraphrases:
        side = Side(column, anchor_tower, anchor_prompt)
        written = mine_paraphrases(encoder, rows, side, out, best, threshold=min_score, by_index=by_index)
        write_json(json, asdict(written))
        _show_paraphrases(written)
        return
    one, other = usual_columns(rows, anchor, positive)
    document = document_prompt(encoder) if positive_prompt is None else positive_prompt
    query = query_prompt(encoder) if anchor_prompt is None else anchor_prompt
    anchor_tower, positive_tower = anchor_tower or query_tower(encoder), positive_tower or document_tower(encoder)
    found = mine_negatives(
        encoder,
        Pairs(rows, Side(one, anchor_tower, query), Side(other, positive_tower, document)),
        out,
        Rules(count, range[1], choice, margin, relative_margin, max_score, skip=range[0]),
        corpus=Corpus(open_rows(corpus), Side(corpus_column, positive_tower, document)) if corpus else None,
        options=Options(duplicate_score, too_few, seed, load(guide, device, dtype) if guide else None, by_index),
    )
    write_json(json, asdict(found))
    _show(found)


def _show_paraphrases(written: Any) -> None:
    say(f"{written.pairs:,} pairs of {written.distinct:,} distinct texts or images in {written.path}")
    if written.pairs:
        say(f"cosines from {written.highest:.4f} to {written.lowest:.4f}")


def _show(found: Any) -> None:
    lines: list[list[object]] = [
        ["rows", f"{found.rows:,}"],
        ["without anchor or positive", f"{found.left_out:,}"],
        ["with too few negatives", f"{found.too_few:,}"],
        ["written", f"{found.written:,}"],
        ["negatives", f"{found.negatives:,}"],
        ["distinct items they are from", f"{found.corpus:,}"],
        ["mean cosine of positives", f"{found.positive_score:.4f}"],
        ["mean cosine of negatives", f"{found.negative_score:.4f}" if found.negatives else "–"],
    ]
    lines += [[f"refused: {reason}", f"{count:,}"] for reason, count in found.refused.items() if count]
    print_table(["hard negatives", ""], lines)
    say(found.path)
