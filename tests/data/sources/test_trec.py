from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mmcl.data.sources.trec import is_run, read_qrels, read_run, write_run
from mmcl.runtime.errors import MmclError

RUN = "q1 Q0 d2 1 0.75 mine\nq1\tQ0\td1\t2\t-1e-3\tmine\r\n\nq2 Q0 d1 7 3 mine\n"


def test_judgements_in_four_columns_or_three_with_a_header_or_without(tmp_path: Path) -> None:
    expected = {"q1": {"d1": 2, "d 2": 0}, "q2": {"d1": -1}}
    for number, text in enumerate(
        (
            "q1\t0\td1\t2\nq1\t0\td 2\t0\nq2\t0\td1\t-1\n",
            "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td 2\t0\nq2\td1\t-1\n",
            "qid,iter,docid,rel\nq1,0,d1,2\nq1,0,d 2,0\nq1,0,d1,2\nq2,0,d1,-1\n",
        )
    ):
        (tmp_path / f"{number}.txt").write_text(text)
        assert read_qrels(tmp_path / f"{number}.txt") == expected
    (tmp_path / "packed.qrels.gz").write_bytes(gzip.compress(text.encode()))
    assert read_qrels(tmp_path / "packed.qrels.gz") == expected


def test_a_run_is_ordered_by_its_scores(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text(RUN)
    assert read_run(tmp_path / "a.run").found == {"q1": {"d2": 0.75, "d1": -0.001}, "q2": {"d1": 3}}


def test_a_written_run_is_read_as_it_was_and_stands_in_trec_evals_order(tmp_path: Path) -> None:
    found = {"q1": {"a": 1 / 3, "b": 0.25, "c": 0.25, "9": -2.5e-9}, "q2": {"é": 1e20}}
    for name in ("out.trec", "out.trec.gz"):
        write_run(tmp_path / name, found, "my model")
        again = read_run(tmp_path / name).found
        assert again == {q: {d: pytest.approx(s, rel=1e-8) for d, s in row.items()} for q, row in found.items()}
    lines = (tmp_path / "out.trec").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == [
        "q1 Q0 a 1 0.333333333 my-model",
        "q1 Q0 c 2 0.25 my-model",
        "q1 Q0 b 3 0.25 my-model",
    ]
    first = (tmp_path / "out.trec.gz").read_bytes()
    write_run(tmp_path / "out.trec.gz", found, "my model")
    assert (tmp_path / "out.trec.gz").read_bytes() == first


def test_runs_are_told_from_other_files(tmp_path: Path) -> None:
    for name, text, run in (
        ("a.txt", RUN, True),
        ("b.trec", "anything", True),
        ("c.run.gz", "anything", True),
        ("d.qrels", "q1 0 d1 2\n", False),
        ("e.csv", "a,b\n1,2\n", False),
        ("f.txt", "the quick brown fox jumps over\n", False),
        ("g.bin", "\udcff\udcfe", False),
    ):
        (tmp_path / name).write_text(text, errors="surrogateescape")
        assert is_run(tmp_path / name) == run, name
    assert not is_run(tmp_path)
    (tmp_path / "a.run").mkdir()
    assert not is_run(tmp_path / "a.run")
    assert is_run(tmp_path / "missing.trec.gz")  # so that reading it says what is missing
    with pytest.raises(MmclError, match=r"missing\.trec\.gz: no such file; a run is"):
        read_run(tmp_path / "missing.trec.gz")
    assert not is_run("ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the run is empty"),
        ("q1 Q0 d1 1 0.5\n", "line 1 is not TREC's query, Q0, document, rank, score and tag: 'q1 Q0 d1 1 0.5'"),
        ("q1 Q0 d1 1 nan x\n", "line 1 is not"),
        ("q1 Q0 d1 1 high x\n", "line 1 is not"),
        (RUN + "q1 Q0 d1 3 0.1 mine\n", "line 5: document 'd1' stands twice for query 'q1'"),
    ],
)
def test_broken_runs_are_answered_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.run").write_text(text)
    with pytest.raises(MmclError, match=message) as caught:
        read_run(tmp_path / "a.run")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(MmclError, match=r"no such file; a run is a file of: query Q0 document rank score tag"):
        read_run(tmp_path / "a.run")
    with pytest.raises(MmclError, match="no such file; judgements are a file of query, document and grade"):
        read_qrels(tmp_path / "a.qrels")
    for found in ({"q 1": {"d": 1.0}}, {"q": {"": 1.0}}, {"q": {"d\n": 1.0}}):
        with pytest.raises(MmclError, match="is empty or has a blank in it, which a TREC run cannot hold"):
            write_run(tmp_path / "a.run", found)
    assert not list(tmp_path.iterdir())
    (tmp_path / "twice.qrels").write_text("q 0 d 1\nq 0 d 2\n")
    with pytest.raises(MmclError, match="line 2 judges document 'd' for query 'q' a second time"):
        read_qrels(tmp_path / "twice.qrels")
