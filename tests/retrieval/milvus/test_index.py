"""The index over Milvus, in Milvus Lite, which speaks the server's language: beside the exact index over FAISS."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("pymilvus")

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.retrieval import Index
from mmcl.retrieval.index import INDEXES, open_index
from mmcl.retrieval.milvus.index import MilvusIndex
from mmcl.runtime.errors import MmclError

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(300, 8)).astype("float32")
QUERIES = RANDOM.normal(size=(20, 8)).astype("float32")
IDS = [f"r{n}" for n in range(300)]
COLUMNS = {
    "price": [None if n % 7 == 0 else n / 2 for n in range(300)],
    "stock": [n % 10 for n in range(300)],
    "colour of it": [("red", "green", "blue")[n % 3] for n in range(300)],
    "tags": [[f"t{n % 4}", "all"] for n in range(300)],
    "added": [datetime(2024, 1, 1 + n % 28, tzinfo=UTC) for n in range(300)],
    "new": [n % 2 == 0 for n in range(300)],
}


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "milvus.db")


def build(uri, **changes):
    settings = {"ids": IDS, "spec": "FLAT", "columns": COLUMNS, "uri": uri, "show_progress": False}
    return MilvusIndex.build(ROWS, **settings | changes)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("ids", [IDS, list(range(0, 600, 2))])
def test_it_finds_what_the_exact_index_finds(uri, similarity, ids):
    index = build(uri, ids=ids, similarity=similarity, columns=None)
    expected = Index.build(ROWS, ids=ids, similarity=similarity).search(QUERIES, 7)
    found = index.search(QUERIES, 7)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0].dtype == expected[0].dtype
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    assert len(index) == 300


def test_vectors_on_disk_come_with_their_ids_labels_and_model(tmp_path, uri):
    encoder = {"weights": "ab", "prompt": ""}
    with VectorWriter(tmp_path / "v", dim=8, model="m", encoder=encoder, shard_rows=100) as writer:
        for start in range(0, 300, 50):
            part = slice(start, start + 50)
            writer.append(IDS[part], ROWS[part], [f"label {name}" for name in IDS[part]])
    index = MilvusIndex.build(open_vectors(tmp_path / "v"), spec="FLAT", uri=uri)
    assert (index.model, index.encoder, index.dim) == ("m", open_vectors(tmp_path / "v").encoder, 8)
    assert index.rows(["r7", "r3"])["label"].to_pylist() == ["label r7", "label r3"]


def test_a_saved_index_is_opened_by_its_name(tmp_path, uri):
    index = build(uri, model="m")
    index.save(tmp_path / "index")
    again = open_index(tmp_path / "index")
    assert isinstance(again, INDEXES["milvus"])
    for one, other in zip(again.search(QUERIES), index.search(QUERIES), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.info() == index.info()
    assert (again.info()["count"], again.info()["ids"], again.model) == (300, "string", "m")


def test_another_process_opens_it(tmp_path, uri):
    program = (
        "import sys; from mmcl.retrieval import open_index; from mmcl.retrieval.milvus.index import MilvusIndex; "
        "import numpy as np; rows = np.eye(4, dtype='float32'); index, uri = sys.argv[1:]; "
        "MilvusIndex.build(rows, uri=uri).save(index)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "index"), uri], check=True, timeout=120)
    index = open_index(tmp_path / "index")
    assert index.search([0.0, 1.0, 0.1, 0.0], 2)[0].tolist() == [[1, 2]]
    index.remove([1])
    assert len(index) == 3


def test_rows_and_vectors_of_ids_come_in_their_order(uri):
    index = build(uri)
    wanted = [IDS[n] for n in (299, 0, 7, 7)]
    rows = index.rows(wanted)
    assert rows["id"].to_pylist() == wanted
    for name, values in COLUMNS.items():
        assert rows[name].to_pylist() == [values[n] for n in (299, 0, 7, 7)]
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors(wanted), unit[[299, 0, 7, 7]], atol=1e-6)
    for ask in (index.rows, index.vectors, index.remove):
        with pytest.raises(MmclError, match=r"holds no id 'x' \(2 such ids\); it has such as 'r"):
            ask(["r1", "x", "y"])


def test_added_removed_and_replaced_vectors(uri):
    index = build(uri, similarity="dot", columns={"price": np.arange(300)})
    index.add(ROWS[:2] * 100, ["new", "r0"], columns={"price": [1000, 1001]})
    assert len(index) == 302
    products = np.concatenate([ROWS, ROWS[:2] * 100]) @ QUERIES.T
    best = np.argsort(-products, axis=0)[:5].T
    assert index.search(QUERIES, 5)[0].tolist() == [[[*IDS, "new", "r0"][place] for place in row] for row in best]
    index.remove(["new", "r0"])  # both vectors of r0
    assert len(index) == 299
    with pytest.raises(MmclError, match="holds no id 'r0'"):
        index.rows(["r0"])
    index.upsert(ROWS[1:3] * 100, ["r1", "r0"], columns={"price": [7, 8]})
    assert len(index) == 300
    assert index.rows(["r1", "r0"])["price"].to_pylist() == [7, 8]
    np.testing.assert_allclose(index.vectors(["r1"])[0], ROWS[1] * 100)
    assert index.search(QUERIES, 5, where="price >= 1000")[0].shape == (20, 0)


def test_equal_ids_are_several_vectors(uri):
    index = build(uri, ids=[n // 2 for n in range(300)], similarity="dot", columns=None)
    np.testing.assert_allclose(index.vectors([5])[0], ROWS[10])
    index.remove([5])
    assert len(index) == 298


def test_an_index_that_is_not_exact_is_built_as_asked(uri):
    exact = Index.build(ROWS, ids=IDS).search(QUERIES, 5)[0]
    for spec in ("auto", "HNSW,M=16,efConstruction=100"):
        found = build(uri, spec=spec, columns=None).search(QUERIES, 5)[0]
        assert np.mean([len(set(one) & set(other)) / 5 for one, other in zip(found, exact, strict=True)]) > 0.9
    with pytest.raises(MmclError, match="'M' is no parameter"):
        build(uri, spec="HNSW,M")
    with pytest.raises(MmclError, match="'HNWS' is no kind of index in Milvus; did you mean 'HNSW'"):
        build(uri, spec="hnws,M=16")


def test_few_vectors_give_few_results(uri):
    index = MilvusIndex.build(ROWS[:3], spec="FLAT", uri=uri)
    assert index.search(QUERIES, 10)[0].shape == (20, 3)
    assert index.search(np.empty((0, 8)), 10)[0].shape[0] == 0
    assert index.search(QUERIES[0], 2)[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uri": None}, "give --uri"),
        ({"uri": "nowhere/milvus.db"}, "neither http://HOST:PORT nor a file ending in .db"),
        ({"uri": "http://user:secret@localhost:19530"}, "leave out user and password"),
        ({"columns": {"text": ["x" * 70_000] * 300}}, "a text has 70,000 bytes, and Milvus holds 65,535"),
        ({"columns": {"list": [[1] * 5_000] * 300}}, "a list has 5,000 items, and Milvus holds 4,096"),
        ({"similarity": "hamming"}, "unknown similarity 'hamming'"),
        ({"ids": ["a"]}, "1 ids for 300 vectors"),
    ],
)
def test_what_cannot_be_built_is_one_line(uri, change, message):
    with pytest.raises(MmclError, match=message) as error:
        build(**{"uri": uri} | change)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_nan_is_named_and_leaves_no_collection(uri):
    broken = ROWS.copy()
    broken[17, 3] = np.nan
    with pytest.raises(MmclError, match="id 'r17' holds NaN"):
        MilvusIndex.build(broken, ids=IDS, uri=uri)
    from pymilvus import MilvusClient

    assert MilvusClient(uri).list_collections() == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda index: index.search(QUERIES[:, :5]), r"queries have shape \(20, 5\), the index holds vectors of 8"),
        (lambda index: index.search(QUERIES, 0), "k is 0"),
        (lambda index: index.search(QUERIES, 20_000), "Milvus gives 16,384 results at most"),
        (lambda index: index.search(np.zeros((1, 8))), "zero vector"),
        (lambda index: index.search(QUERIES, where="prise > 3"), "no column 'prise'; did you mean 'price'"),
        (lambda index: index.search(QUERIES, where="price > 'x'"), "'price' holds numbers"),
        (lambda index: index.add(ROWS[:1, :5], ["x"]), "the vectors have 5 dimensions, those of the index have 8"),
        (lambda index: index.add(ROWS[:1], ["x"]), "the index has a column 'price'"),
        (lambda index: index.add(ROWS[:1], [3], columns={}), "the ids are whole numbers, those of the index text"),
    ],
)
def test_mistakes_are_one_line(uri, ask, message):
    index = build(uri)
    with pytest.raises(MmclError, match=message):
        ask(index)
    assert len(index) == 300


def test_a_server_that_is_away_is_said_soon(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(
        MmclError, match=rf"http://127\.0\.0\.1:{port}: no Milvus server answers there .*start it"
    ) as error:
        build(f"http://127.0.0.1:{port}")
    assert time.monotonic() - began < 15
    assert "\n" not in str(error.value)


def test_a_collection_that_is_gone_is_said(tmp_path, uri):
    index = build(uri)
    index.save(tmp_path / "index")
    index._collection.drop()
    with pytest.raises(MmclError, match=r"has no collection 'mmcl_.*' any more; build it"):
        open_index(tmp_path / "index")


def test_it_is_not_saved_around_its_own_vectors(tmp_path):
    (tmp_path / "index").mkdir()
    index = build(str(tmp_path / "index" / "milvus.db"))
    with pytest.raises(MmclError):
        index.save(tmp_path / "index")
    assert len(index) == 300


def test_columns_may_be_called_as_they_are(uri):
    columns = {"pk": range(300), "vector": range(300), "in": range(300), "a b": range(300)}
    index = build(uri, columns=columns)
    assert index.rows(["r5"]).to_pylist() == [{"id": "r5", "pk": 5, "vector": 5, "in": 5, "a b": 5}]
    assert index.search(QUERIES, 300, where='"a b" < 4 and vector > 1')[0].shape == (20, 2)


def test_a_table_of_columns(uri):
    index = build(uri, columns=pa.table({"price": np.arange(300)}))
    assert index.rows(["r5"])["price"].to_pylist() == [5]


def test_a_mistaken_addition_writes_nothing(tmp_path, uri):
    index = build(uri, columns={"stock": list(range(300))}, model="m")
    broken = np.concatenate([ROWS, ROWS])
    broken[-1] = np.nan  # in a later block than the first
    for add in (index.add, index.upsert):
        with pytest.raises(MmclError, match="id 'n599' holds NaN"):
            add(broken, [f"n{n}" for n in range(600)], columns={"stock": list(range(600))})
        with pytest.raises(MmclError, match="'stock' holds whole numbers in Milvus, and the new values have fractions"):
            add(ROWS[:1], ["new"], columns={"stock": [0.5]})
        with VectorWriter(tmp_path / add.__name__, dim=8, model="other") as writer:
            writer.append(["new"], ROWS[:1])
        with pytest.raises(MmclError, match="the vectors are of model 'other', those of the index of 'm'"):
            add(open_vectors(tmp_path / add.__name__), ["new"], columns={"stock": [1]})
    assert len(index) == 300
