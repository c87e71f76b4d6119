from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcl.evaluation import open_sts
from mmcl.evaluation.tasks.sentence_pairs import HUB
from mmcl.runtime.errors import MmclError

COLUMNS = {
    "task": ["B", "STSB", "B", "STS12", "STSB"],
    "split": ["test", "test", "dev", "test", "dev"],
    "subset": ["x", "y", "x", "z", "y"],
    "score": [1.0, 2.5, 3.0, 4.0, 5.0],
    "sentence1": ["a", "b", "c", "d", "e"],
    "sentence2": ["f", "g", "h", "i", "j"],
}


def test_a_split_of_several_tasks_in_the_order_of_the_paper(tmp_path: Path) -> None:
    table = pa.table(COLUMNS)
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (table, tmp_path / "t.parquet", str(tmp_path / "t.parquet")):
        pairs = open_sts(source)
        assert pairs.tasks == ["STS12", "STSB", "B"]
        assert (pairs.first, pairs.second) == (["a", "b", "d"], ["f", "g", "i"])
        assert pairs.task.tolist() == [2, 1, 0]
        assert pairs.score.tolist() == [1.0, 2.5, 4.0]
    assert open_sts(table, split="dev", tasks=["STSB"]).first == ["e"]
    assert len(open_sts(table, split=None)) == 5
    assert open_sts(table).fingerprint == open_sts(tmp_path / "t.parquet").fingerprint
    assert open_sts(table).fingerprint != open_sts(table, split="dev").fingerprint


def test_a_tsv_is_read_as_the_tasks_write_theirs(tmp_path: Path) -> None:
    """A quote opens nothing, a table without tasks is one, and columns may be called what SICK calls them."""
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n"
    (tmp_path / "sick.tsv").write_text(header + '1\t"a dog\tb "cat" \t4.5\n2\tNA\tnull\t1\n', encoding="utf-8")
    pairs = open_sts(tmp_path / "sick.tsv")
    assert (pairs.first, pairs.second, pairs.tasks) == (['"a dog', "NA"], ['b "cat" ', "null"], ["sick"])
    assert pairs.score.tolist() == [4.5, 1.0]


def test_own_columns_and_tables_without_scores(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text('q,a,grade\n"what, now",this,3\nwhy,that,2\n')
    names = {"sentence1": "q", "sentence2": "a", "score": "grade"}
    assert open_sts(tmp_path / "faq.csv", columns=names).first == ["what, now", "why"]
    pairs = open_sts(tmp_path / "faq.csv", columns={"sentence1": "q", "sentence2": "a"}, scored=False)
    assert np.isnan(pairs.score).all()


def test_rows_without_text_or_score_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [(None, "b", 1), ("a", " ", 1), ("a", "b", None), ("a", "b", float("nan")), ("a", "b", 2), ("c", "d", 3)]
    table = pa.table(dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*rows, strict=True)), strict=True)))
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        pairs = open_sts(table)
    assert (pairs.first, pairs.left_out) == (["a", "c"], 4)
    assert "4 of 6 rows left out: they lack two sentences and a score" in caplog.text


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (COLUMNS, {"split": "tset"}, "no split 'tset'; it has dev, test"),
        (COLUMNS, {"tasks": ["STSb"]}, "no task 'STSb'; did you mean 'STSB'?"),
        (COLUMNS, {"columns": {"score": "scor"}}, "no column 'scor'; it has .*did you mean 'score'?"),
        ({"sentence1": ["a"], "text": ["b"], "score": [1]}, {}, "no column 'sentence2'"),
        ({"sentence1": [""], "sentence2": ["b"], "score": [1]}, {}, "no row has two sentences and a score"),
        ({"sentence1": [], "sentence2": [], "score": []}, {}, "there are no rows"),
        (None, {"tasks": ["STS11"]}, "the hub: no task 'STS11'"),
    ],
)
def test_mistakes_are_one_line(table: dict | None, options: dict, message: str) -> None:
    with pytest.raises(MmclError, match=message):
        open_sts(None if table is None else pa.table(table), **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence1\tsentence2\tscore\na\tb\n", "line 2 has 2 fields, the header 3"),
        ("score\tscore\n1\t2\n", "names a column twice"),
        ("sentence1\tsentence2\tscore\n", "there are no rows"),
        ("", "there are no rows"),
    ],
)
def test_broken_tsv_files_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(MmclError, match=message):
        open_sts(tmp_path / "t.tsv")


def test_without_a_table_the_hub_is_asked_for_the_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MmclError, match="mteb/sts12-sts: no such file or folder here, and the hub cannot be reached"):
        open_sts()

    from mmcl.evaluation.tasks import sentence_pairs

    def opened(source: str, *, split: str | None):
        folder = {"split": ["dev"], "sentence1": [source], "sentence2": ["b"], "score": [1.0]}
        return sentence_pairs._as_rows(pa.table(folder), f"{source} ({split})")

    monkeypatch.setattr(sentence_pairs, "open_source", opened)
    pairs = open_sts()
    assert (pairs.tasks, pairs.first) == (list(HUB), list(HUB.values()))
    assert json.dumps(pairs.task.tolist()) == "[0, 1, 2, 3, 4, 5, 6]"
