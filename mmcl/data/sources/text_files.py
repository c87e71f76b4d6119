"""Text files of a sentence a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from mmcl.data.sources.files import open_text

_BLOCK = 10_000


class TextFiles:
    """UTF-8 files of which every line is a row with the column ``text``; an empty line is an empty text."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in the order of the files."""
        for file in self.files:
            with open_text(file) as opened:
                opened.reconfigure(newline="\n")  # other characters that end lines may stand in a sentence
                while block := [line.rstrip("\r\n") for line in islice(opened, _BLOCK)]:
                    yield pa.record_batch({"text": pa.array(block, pa.string())})
