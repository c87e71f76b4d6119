"""The tasks' own files, as their authors gave them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcl.evaluation import open_sts
from mmcl.runtime.errors import MmclError


@pytest.fixture
def senteval(tmp_path: Path) -> Path:
    """SentEval's ``downstream`` folder in small."""
    files = {
        "STS/STS12-en-test/STS.input.MSRpar.txt": 'a "quote\tb\nc\td\n',
        "STS/STS12-en-test/STS.gs.MSRpar.txt": "4.4\n0.8\n",
        "STS/STS12-en-test/STS.input.SMTeuroparl.txt": "e\tf\r\n",
        "STS/STS12-en-test/STS.gs.SMTeuroparl.txt": "1\r\n",
        "STS/STS15-en-test/STS.input.images.txt": "g\th\thttp://x\thttp://y\ni\tj\tx\ty\nk\tl\tx\ty\n",
        "STS/STS15-en-test/STS.gs.images.txt": "\n2.5\n\n",
        "STS/STSBenchmark/sts-test.csv": 'main\tMSRvid\t2012test\t0024\t2.500\tm\t"n\n'
        "main\tx\t2012\t1\t5\to\tp\tlicence\t\n",
        "STS/STSBenchmark/sts-dev.csv": "main\tMSRvid\t2012test\t0024\t2.500\tq\tr\n\n",
        "SICK/SICK_test_annotated.txt": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        "6\ts\tt\t3.3\tNEUTRAL\n",
        "SICK/SICK_train.txt": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        "7\tu\tv\t4\tNEUTRAL\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content.encode())
    return tmp_path


def test_a_folder_of_all_tasks_is_read_as_their_authors_wrote_them(senteval: Path) -> None:
    pairs = open_sts(senteval)
    assert pairs.tasks == ["STS12", "STS15", "STSB", "SICKR"]
    assert pairs.first == ["s", 'a "quote', "c", "e", "i", "m", "o"]
    assert pairs.second == ["t", "b", "d", "f", "j", '"n', "p"]
    assert pairs.score.tolist() == [3.3, 4.4, 0.8, 1, 2.5, 2.5, 5]
    assert pairs.left_out == 2  # of 2015, which people were not asked about
    assert open_sts(senteval, split="dev").first == ["q"]
    assert open_sts(senteval, tasks=["SICKR"], split="train").first == ["u"]
    assert open_sts(senteval / "STS" / "STSBenchmark" / "sts-test.csv").second == ['"n', "p"]
    assert open_sts(senteval / "STS" / "STS12-en-test" / "STS.input.MSRpar.txt").tasks == ["STS12"]


def test_sick_in_one_file_says_the_split_of_each_pair(tmp_path: Path) -> None:
    header = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set"
    rows = [header, *(f"{n}\ta{n}\tb{n}\tNEUTRAL\t{n}\t{part}" for n, part in enumerate(["TRAIN", "TEST", "TRIAL"]))]
    (tmp_path / "SICK.txt").write_text("\r\n".join([*rows, "", ""]))
    (tmp_path / "SICK_test_annotated.txt").write_text("\n".join(rows))  # a part beside the whole does not count twice
    for source in (tmp_path, tmp_path / "SICK.txt"):
        assert [open_sts(source, split=split).first for split in ("train", "test", "dev")] == [["a0"], ["a1"], ["a2"]]
        assert open_sts(source).tasks == ["SICKR"]


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n\r\n", "\n \n\t\n"])
def test_blank_lines_at_the_end_of_a_table_are_none(tmp_path: Path, end: str) -> None:
    (tmp_path / "sts.tsv").write_bytes(f"sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2{end}".encode())
    pairs = open_sts(tmp_path / "sts.tsv")
    assert (pairs.first, pairs.score.tolist(), pairs.left_out) == (["a", "c"], [1, 2], 0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("STS/STS12-en-test/STS.gs.MSRpar.txt", None, r"its scores are missing; STS\.gs\.MSRpar\.txt belongs"),
        ("STS/STS12-en-test/STS.gs.MSRpar.txt", b"1\n2\n3\n", "2 pairs, but STS.gs.MSRpar.txt has 3 scores"),
        ("STS/STS12-en-test/STS.gs.MSRpar.txt", b"1\nhigh\n", "line 2: 'high' is no score"),
        ("STS/STS12-en-test/STS.input.MSRpar.txt", b"a b\nc\td\n", "line 1 has no two sentences"),
        ("STS/STS12-en-test/STS.input.MSRpar.txt", b"\xff\tb\nc\td\n", "not a UTF-8 file"),
        ("SICK/SICK_train.txt", b"pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\n", "line 2 has 2 fields"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(
    senteval: Path, file: str, content: bytes | None, message: str
) -> None:
    if content is None:
        (senteval / file).unlink()
    else:
        (senteval / file).write_bytes(content)
    with pytest.raises(MmclError, match=message) as caught:
        open_sts(senteval)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "task"),
    [
        (("STS2016.input.answer.txt", "STS2016.gs.answer.txt"), "STS16"),
        (("STS2017.eval.v1.1/STS.input.track5.en-en.txt", "STS2017.gs/STS.gs.track5.en-en.txt"), "STS17"),
        (("STS14/STS.input.x.txt", "STS14/STS.gs.x.txt", "__MACOSX/STS.input.x.txt", "STS14/._STS.gs.x.txt"), "STS14"),
    ],
)
def test_the_files_of_a_year_as_they_were_handed_out(tmp_path: Path, files: tuple[str, ...], task: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\tb\n" if ".input." in name else "2\n")
    pairs = open_sts(tmp_path)
    assert (pairs.tasks, pairs.first, pairs.score.tolist()) == ([task], ["a"], [2.0])


def test_a_file_of_all_parts_beside_them_does_not_count_twice(tmp_path: Path) -> None:
    for part in ("x", "ALL"):
        (tmp_path / f"STS.input.{part}.txt").write_text("a\tb\n")
        (tmp_path / f"STS.gs.{part}.txt").write_text("2\n")
    assert len(open_sts(tmp_path)) == 1
    assert len(open_sts(tmp_path / "STS.input.ALL.txt")) == 1
