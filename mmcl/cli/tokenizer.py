"""mmcl tokenizer: tokenizers of one's own language and field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcl.cli.options import Separator, names_columns
from mmcl.cli.output import say

app = typer.Typer(rich_markup_mode=None, help="Tokenizers trained on your own text.", no_args_is_help=True)


@app.callback()
def _tokenizer() -> None:
    """Keeps `tokenizer` a group while it has one command."""


@app.command(short_help="Train a SentencePiece tokenizer for any language.")
@names_columns
def train(
    source: Annotated[str, typer.Argument(help="Rows: a file, folder or name.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder for the tokenizer.", show_default=False)],
    column: Annotated[str, typer.Option(help="The column of texts, one or a list a row.")] = "text",
    split: Annotated[str | None, typer.Option(help="The part of the source to read.")] = None,
    separator: Separator = None,
    vocab_size: Annotated[int, typer.Option(min=16, help="Largest number of pieces.")] = 8000,
    lowercase: Annotated[bool, typer.Option(help="Fold case before splitting.")] = True,
    character_coverage: Annotated[
        float,
        typer.Option(min=0.5, max=1.0, help="Share of the characters that the pieces cover; 1 for small alphabets."),
    ] = 0.9995,
    words: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many frequent words whole, and cut all others into pieces."),
    ] = None,
) -> None:
    """Train a SentencePiece tokenizer for any language; `model.text.tokenizer.name` of a config takes its folder."""
    from mmcl.config.model import TokenizerConfig
    from mmcl.data.processors.train_tokenizer import save_trained, segmentation
    from mmcl.data.sources import open_source

    rows = open_source(source, split=split, separator=separator)
    settings = TokenizerConfig(
        vocab_size=vocab_size, lowercase=lowercase, character_coverage=character_coverage, words=words
    )
    tokenizer, example = save_trained(rows, column, settings, out)
    say(f"{len(tokenizer):,} pieces in {out}")
    say(f"{example!r} is read as: {segmentation(tokenizer, example)}")
