"""mmcl index: built, changed and looked at from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.encoding import VectorWriter
from mmcl.retrieval import Index

VECTORS = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")


def write(folder, rows, weights="w", dim=8):
    encoder = {"weights": weights, "prompt": ""}
    with VectorWriter(folder, dim=dim, model="m", encoder=encoder) as writer:
        writer.append([f"v{row}" for row in rows], VECTORS[list(rows), :dim], [f"label {row}" for row in rows])
    return folder


@pytest.fixture
def made(tmp_path, mmcl_):
    lines = [f"v{row},{row},{'even' if row % 2 == 0 else 'odd'},2024-01-{row % 28 + 1:02}" for row in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,price,kind,added", *lines]))
    write(tmp_path / "vectors", range(50))
    columns = ("--columns", "price:number,kind,added:time", "--from", tmp_path / "rows.csv")
    code, out, err = mmcl_("index", "build", tmp_path / "vectors", "--out", tmp_path / "index", *columns)
    assert code == 0, err
    assert "price (numbers), kind (text), added (times)" in out
    return tmp_path


def test_columns_of_a_table_filter_a_search(made):
    index = Index.load(made / "index")
    ids, _ = index.search(VECTORS[:5], k=50, where="kind = 'even' and price between 10 and 20 and added > '2024-01-13'")
    assert sorted(ids[0]) == ["v14", "v16", "v18", "v20"]


def test_vectors_are_added_with_their_columns_and_removed_by_id(mmcl_, made):
    write(made / "more", range(45, 60))
    arguments = ("index", "add", made / "index", made / "more", "--from", made / "rows.csv")
    code, out, err = mmcl_(*arguments, "--upsert")
    assert (code, out) == (0, f"added 15 in the place of 5; 60 vectors in {made / 'index'}\n"), err
    assert Index.load(made / "index").rows(["v59"]).to_pylist()[0]["price"] == 59
    code, out, _ = mmcl_(*arguments)
    assert (code, out) == (0, f"added 15; 75 vectors in {made / 'index'}\n")
    code, out, _ = mmcl_("index", "remove", made / "index", "v59", "v3")
    assert (code, out) == (0, f"removed 3; 72 vectors in {made / 'index'}\n")
    (made / "ids.txt").write_text("v4\nv5\n")
    code, out, _ = mmcl_("index", "remove", made / "index", "--file", made / "ids.txt")
    assert (code, out) == (0, f"removed 2; 70 vectors in {made / 'index'}\n")
    code, _, _ = mmcl_("index", "info", made / "index", "--json", made / "info.json")
    about = json.loads((made / "info.json").read_text())
    assert code == 0
    assert (about["count"], about["removed"], about["recall"], about["model"]) == (70, 0, 1.0, "m")
    assert about["columns"] == {"price": "numbers", "kind": "text", "added": "times"}


def test_a_mistake_is_answered_in_one_line_and_leaves_the_index(mmcl_, made):
    before = (made / "index" / "index.json").read_bytes()
    write(made / "more", range(50, 55))
    write(made / "other", range(50, 55), weights="x")
    write(made / "narrow", range(50, 55), dim=4)
    build = ("build", made / "vectors", "--out", made / "new")
    table = made / "rows.csv"
    for arguments, message in [
        (("remove", made / "index", "v1", "x"), "the index holds no id 'x'; it has such as 'v0'"),
        (("remove", made / "index"), "name the ids to remove, or a --file of them"),
        (("remove", made / "index", "--file", made / "no"), "cannot be read"),
        (("add", made / "index", made / "more"), "the index has a column 'price'; give its values too"),
        (("add", made / "index", made / "other", "--from", table), "with other weights or another prompt"),
        (("add", made / "index", made / "narrow", "--from", table), "have 4 dimensions, those of the index have 8"),
        (("add", made / "none", made / "more"), "no index.json here"),
        ((*build, "--columns", "price"), "--columns and --from go together"),
        ((*build, "--columns", "prize", "--from", table), "no column 'prize'"),
        ((*build, "--columns", "kind:number", "--from", table), "column 'kind' holds 'even', which is no number"),
        ((*build, "--recall", "2"), "recall is 2.0; it is a share"),
    ]:
        code, out, err = mmcl_("index", *arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
        assert len(err.splitlines()) == 1
    assert (made / "index" / "index.json").read_bytes() == before


@pytest.mark.parametrize("engine", ["faiss", "disk"])
def test_a_server_is_of_milvus_alone(mmcl_, tmp_path, engine):
    vectors, out = write(tmp_path / "vectors", range(5)), tmp_path / "index"
    code, _, err = mmcl_("index", "build", vectors, "--out", out, "--to", engine, "--uri", "milvus.db")
    assert code == 2
    assert "--uri milvus.db: is of a Milvus server; give --to milvus too" in err


def test_unusable_vectors_are_named_with_their_file(mmcl_, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    for name, place, value in [("nan", 3, np.nan), ("infinite", 5, np.inf), ("zero", 4, 0)]:
        broken = vectors.copy()
        broken[place] = value
        np.save(tmp_path / f"{name}.npy", broken)
    np.save(tmp_path / "none.npy", vectors[:0])
    np.save(tmp_path / "narrow.npy", vectors[:, :7])
    np.save(tmp_path / "right.npy", vectors)
    index = tmp_path / "index"
    assert mmcl_("index", "build", tmp_path / "right.npy", "--out", index)[0] == 0
    before = {path: path.read_bytes() for path in index.iterdir()}
    for name, message in {
        "nan": "id 3 holds NaN or infinity (1 such vectors); leave them out",
        "infinite": "id 5 holds NaN or infinity (1 such vectors); leave them out",
        "zero": "id 4 is a zero vector, whose cosine is undefined; leave it out",
    }.items():
        line = f"error: {tmp_path / name}.npy: {message}\n"
        assert mmcl_("index", "build", tmp_path / f"{name}.npy", "--out", tmp_path / "new") == (2, "", line)
        assert mmcl_("index", "add", index, tmp_path / f"{name}.npy") == (2, "", line)
        code, _, err = mmcl_("dedup", tmp_path / f"{name}.npy", "--out", tmp_path / "duplicates", "--threshold", 0.9)
        assert (code, err) == (2, line)
    code, _, err = mmcl_("index", "build", tmp_path / "none.npy", "--out", tmp_path / "new")
    assert (code, err) == (2, f"error: {tmp_path}/none.npy: the vectors are of shape (0, 8): nothing to index\n")
    code, _, err = mmcl_("index", "add", index, tmp_path / "narrow.npy")
    assert (code, err.splitlines()) == (
        2,
        [
            f"error: {tmp_path}/narrow.npy: the vectors have 7 dimensions, those of the index have 8; encode with the "
            "model of these"
        ],
    )
    assert {path: path.read_bytes() for path in index.iterdir()} == before
    assert not (tmp_path / "new").exists()
