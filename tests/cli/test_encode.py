"""mmcl encode: what its options ask for is what is on disk."""

import numpy as np
import pytest

from mmcl.encoding import open_vectors

from ..encoding.corpora.tiny import sentences, tiny_encoder

LONG = " ".join(sentences(30))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(max_tokens=24).save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(["a dog", LONG, "", "a red car"])))
    return path


def test_long_texts_shards_and_precision_are_as_asked_for(mmcl_, model, table, tmp_path):
    options = ("--long", "windows", "--overlap", "4", "--precision", "int8", "--shard-rows", "2")
    code, out, err = mmcl_("encode", model, table, "--out", tmp_path / "v", *options)
    assert code == 0, err
    stored = open_vectors(tmp_path / "v")
    assert out == f"{len(stored):,} vectors of 16 dimensions in {tmp_path / 'v'}\n"
    assert stored.dtype == np.int8
    assert [len(set(ids)) for ids, _ in stored.iter_shards()] == [2, 1]
    assert stored.table()["id"].to_pylist().count("1") > 3
    assert [entry["id"] for entry in stored.rejects()] == ["2"]
    assert f"they are listed in {tmp_path / 'v' / 'rejects.jsonl'}" in err


def test_what_is_cut_is_said_with_what_would_not_cut_it(mmcl_, model, table, tmp_path):
    code, _, err = mmcl_("encode", model, table, "--out", tmp_path / "v")
    assert code == 0
    assert err.count("1 texts in column 'text' were longer than the model reads, and cut; --long chunk embeds all") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--devices", "cpu,cpux"), "device 'cpux' is not known"),
        (("--devices", "0"), "a number of processes from 1 up"),
        (("--shard-rows", "0"), "shard_rows is 0; it must be 1 or more"),
        (("--long", "chunk", "--overlap", "30"), "overlap is 30; it must be from 0 to"),
        (("--address", "somewhere:6379"), "is that of a Ray cluster; give --engine ray too"),
    ],
)
def test_mistakes_are_one_line(mmcl_, model, table, tmp_path, options, said):
    code, _, err = mmcl_("encode", model, table, "--out", tmp_path / "v", *options)
    assert code == 2
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "v").exists()  # so that the command, corrected, begins it
