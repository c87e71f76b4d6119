from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from mmcl.data.sources.beir import is_beir, open_beir
from mmcl.runtime.errors import MmclError

CRANFIELD = Path(__file__).parents[4] / "shared" / "data" / "cranfield"

CORPUS = [
    {"_id": "d1", "title": "A title", "text": "and text"},
    {"_id": "d2", "title": "", "text": " text alone "},
    {"_id": "d3", "text": "no title\u2028at all", "metadata": {}},
    {"_id": 4, "title": "title alone", "text": None},
    {"_id": "d5", "title": " ", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": " "}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, items in (("corpus", CORPUS), ("queries", QUERIES)):
        lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        (tmp_path / f"{name}.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t4\t1\nq1\td3\t0\n")
    return tmp_path


def test_title_and_text_are_joined_and_only_judged_queries_are_kept(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        beir = open_beir(folder)
    texts = {"d1": "A title and text", "d2": "text alone", "d3": "no title\u2028at all", "4": "title alone"}
    assert beir.corpus == texts
    assert beir.queries == {"q1": "one"}
    assert beir.qrels == {"q1": {"d1": 2, "4": 1, "d3": 0}}
    assert (beir.empty_documents, beir.empty_queries, beir.unknown_documents, beir.unknown_queries) == (1, 0, 0, 0)
    assert "1 documents without text left out" in caplog.text


def test_what_the_judgements_name_but_the_folder_lacks_is_counted_and_said(folder, caplog):
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tx\t1\nq3\td1\t1\nzz\td1\t1\n")
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        beir = open_beir(folder)
    assert (beir.unknown_documents, beir.unknown_queries, beir.empty_queries) == (1, 1, 1)
    assert (
        "1 of 6 judgements name documents that corpus.jsonl lacks, such as 'x': counted as never found" in caplog.text
    )
    assert "1 of 3 judged queries are not in queries.jsonl, such as 'zz': left out" in caplog.text
    assert "1 judged queries without text left out" in caplog.text


def test_queries_whose_id_is_a_documents_are_counted_and_equal_ids_of_other_texts_are_said(tmp_path, caplog):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("1\t2\t1\n2\t1\t1\n3\t1\t1\n")
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "1", "title": "A", "text": "one"}\n{"_id": "2", "text": "two"}\n{"_id": "9", "text": "nine"}\n'
    )
    (tmp_path / "queries.jsonl").write_text("\n".join(f'{{"_id": "{n}", "text": "one"}}' for n in (1, 2, 3)))
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        beir = open_beir(tmp_path)
    assert (beir.queries_in_corpus, beir.coincidences) == (2, 1)
    assert "1 queries have the id of a document with another text" in caplog.text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("test.tsv", "q1 d1 2\nq1 4 1\nq1   d3 0\n  \n"),
        ("test.tsv", "q1 0 d1 2\nq1 0 4 1\nq1 0 d3 0\n\n"),
        ("test.txt", "q1\tQ0\td1\t2\r\nq1\tQ0\t4\t1\r\nq1\tQ0\td3\t0\r\n\r\n"),
        ("test.qrels", "qid iter docid rel\nq1 0\td1 2\nq1 0 4 1\nq1 0 d3 0"),
        ("test.tsv.gz", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t4\t1\nq1\td3\t0\n"),
    ],
)
def test_judgements_in_columns_of_blanks_or_of_trec_and_compressed_files_are_read(folder, file, content):
    expected = open_beir(folder)
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / file).write_bytes(gzip.compress(content.encode()) if file.endswith("gz") else content.encode())
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert is_beir(folder)
    assert open_beir(folder) == expected
    assert open_beir(folder, "test").fingerprint == expected.fingerprint


def test_two_files_of_a_split_and_a_damaged_archive_are_said(folder):
    (folder / "qrels" / "test.txt").write_text("q1 d1 2\n")
    with pytest.raises(MmclError, match=r"test\.\w+ is of the same split; keep one"):
        open_beir(folder)
    (folder / "qrels" / "test.txt").unlink()
    (folder / "corpus.jsonl").rename(folder / "corpus.jsonl.gz")
    with pytest.raises(MmclError, match=r"corpus\.jsonl\.gz: damaged gzip file"):
        open_beir(folder)


def test_a_split_is_chosen_and_a_file_without_header_has_none(folder):
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    assert open_beir(folder, "dev").qrels == {"q2": {"d2": 1}}
    assert open_beir(folder, "dev").fingerprint != open_beir(folder, "test").fingerprint
    with pytest.raises(MmclError, match="it has the splits dev, test; name one as split"):
        open_beir(folder)
    with pytest.raises(MmclError, match="no split 'train'; it has dev, test"):
        open_beir(folder, "train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", None, "corpus.jsonl: no such file; a BEIR folder holds"),
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id"', r"corpus.jsonl: line 2 is not JSON"),
        ("corpus.jsonl", '{"id": "d1", "text": "a"}\n', "line 1 has no '_id'"),
        ("corpus.jsonl", '["d1"]\n', "line 1 has no '_id'"),
        ("corpus.jsonl", '{"_id": "d1", "text": ["a"]}\n', "line 1: 'text' is a list, not text"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n' * 2, "line 2: the id 'q1' stands twice"),
        ("queries.jsonl", "\n", "queries.jsonl: there are no rows"),
        ("queries.jsonl", '{"_id": "1", "text": "a"}\n', "none of its 1 queries has a text; queries.jsonl has .* '1'"),
        ("corpus.jsonl", '{"_id": "1", "text": "a"}\n', "none of its 3 judgements names a document .* such as '1'"),
        ("qrels/test.tsv", None, "no judgements there; a BEIR folder has qrels/SPLIT.tsv"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "test.tsv: there are no judgements"),
        ("qrels/test.tsv", "q\td\ts\nq1\td1\thigh\n", "line 2 is not query id, document id and grade"),
        ("qrels/test.tsv", "q\td\ts\nq1 d1\n", "line 2 is not query id, document id and grade"),
        ("qrels/test.tsv", "q1\td1\thigh\nq1\td3\t1\n", "line 1 is not query id, document id and grade"),
        ("qrels/test.tsv", "query\td1\thigh\nq1\td3\t1\n", "line 1 is not query id, document id and grade"),
        ("qrels/test.tsv", "q7\td7\tnan\nq1\td3\t1\n", "line 1 is not query id, document id and grade"),
        ("qrels/test.tsv", "q1 0 d1 1 run\nq1\td3\t1\n", "line 1 is not query id, document id and grade"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t2\n", "line 2 judges document 'd1' for query 'q1' a second time"),
        ("corpus.jsonl", b"\xff\xfe", "not a UTF-8 file"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(folder, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MmclError, match=message):
        open_beir(folder)


def test_which_folders_are_of_that_layout(folder, tmp_path):
    assert is_beir(folder)
    (folder / "corpus.jsonl").unlink()
    assert is_beir(folder)  # so that the missing file is named
    assert not is_beir(folder / "qrels")
    assert not is_beir("no/such/folder")
    with pytest.raises(MmclError, match="no such folder"):
        open_beir("no/such/folder")


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="needs the Cranfield collection at ../shared/data/cranfield")
def test_cranfield_is_read_in_full(caplog):
    with caplog.at_level(logging.WARNING, logger="mmcl"):
        beir = open_beir(CRANFIELD, "test")
    assert (len(beir.corpus), len(beir.queries), sum(map(len, beir.qrels.values()))) == (1398, 225, 1836)
    assert {grade for grades in beir.qrels.values() for grade in grades.values()} == {1, 2, 3, 4}


def test_hidden_files_are_no_splits(folder):
    (folder / "qrels" / "._test.tsv").write_bytes(b"\0")
    assert open_beir(folder).name.endswith("(test)")


@pytest.mark.parametrize(
    ("name", "content"),
    [("test.csv", 'query-id,corpus-id,score\nq1,d1,2\n"q1",4,1\nq1,d3,0\n'), ("TEST.TSV", "q1\td1\t2\nq1\t4\t1\n")],
)
def test_judgements_between_commas_and_in_capitals(folder, name, content):
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / name).write_text(content)
    assert open_beir(folder).qrels["q1"]["4"] == 1


def test_a_line_that_never_ends_its_lists_is_named(folder):
    (folder / "queries.jsonl").write_text("[" * 100_000)
    with pytest.raises(MmclError, match="line 1 is nested too deeply"):
        open_beir(folder)
