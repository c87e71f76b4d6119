import errno
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmcl.retrieval import Index
from mmcl.runtime.errors import MmclError

RNG = np.random.default_rng(0)
CORPUS = RNG.normal(size=(500, 16)).astype("float32")
QUERIES = RNG.normal(size=(30, 16)).astype("float32")
SIMILARITIES = ["cosine", "dot", "euclidean"]


def brute_force(queries: np.ndarray, corpus: np.ndarray, k: int, similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores by the definitions, in float64; equal scores in the order of positions."""
    q, c = queries.astype("float64"), corpus.astype("float64")
    if similarity == "cosine":
        q, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, c))
    scores = -np.linalg.norm(q[:, None] - c[None], axis=2) if similarity == "euclidean" else q @ c.T
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return positions, np.take_along_axis(scores, positions, 1)


def clusters(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Points around 40 centres; other centres with another seed, so that queries may come from elsewhere."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    return (centres[rng.integers(0, 40, count)] + 0.3 * rng.normal(size=(count, dim))).astype("float32")


@pytest.mark.parametrize("queries", [QUERIES, QUERIES[:3]], ids=["many", "few"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_flat_equals_brute_force_in_float64(similarity, queries):
    ids, scores = Index.build(CORPUS, similarity=similarity).search(queries, k=12)
    positions, expected = brute_force(queries, CORPUS, 12, similarity)
    np.testing.assert_array_equal(ids, positions)
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float32
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("k", [1, 4, 60, 250])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_flat_settles_ties_by_position(similarity, k):
    rng = np.random.default_rng(1)  # few distinct values, so that most scores occur many times
    corpus, queries = (rng.integers(-1, 2, (n, 3)).astype("float32") for n in (400, 40))
    ids, _ = Index.build(corpus, similarity=similarity).search(queries, k=k)
    scores = queries @ corpus.T if similarity == "dot" else -((queries[:, None] - corpus) ** 2).sum(2)
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_a_corpus_of_one_vector_repeated_comes_back_in_order():
    ids, _ = Index.build(np.ones((3_000, 4))).search(np.ones((2, 4)), k=5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_torch_tensors_half_precision_and_a_single_query_are_accepted():
    index = Index.build(torch.from_numpy(CORPUS).half())
    ids, scores = index.search(torch.from_numpy(CORPUS[7]), k=1)
    assert ids.tolist() == [[7]]
    assert scores.shape == (1, 1)
    assert index.search(np.empty((0, 16)), k=3)[0].shape == (0, 3)


def test_k_above_the_number_of_vectors_gives_all_of_them():
    ids, scores = Index.build(CORPUS[:4]).search(QUERIES, k=10)
    assert ids.shape == scores.shape == (30, 4)
    assert np.isfinite(scores).all()


def test_string_ids_and_labels():
    index = Index.build(CORPUS[:3], ids=["x", "y", "z"], labels=["a cat", None, "a dog"])
    ids, _ = index.search(CORPUS[:3], k=1)
    assert ids.tolist() == [["x"], ["y"], ["z"]]
    assert index.rows(["z", "y", "x"])["label"].to_pylist() == ["a dog", None, "a cat"]
    assert Index.build(CORPUS[:3]).rows([0]).column_names == ["id"]


def test_the_first_vector_of_a_repeated_id_gives_its_label():
    index = Index.build(CORPUS[:3], ids=[5, 5, 6], labels=["first", "second", "third"])
    assert index.rows([5]).to_pylist() == [{"id": 5, "label": "first"}]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("spec", ["IVF64,Flat", "RR16,IVF32,SQ8", "IVF32,SQ8,RFlat", "HNSW32"])
def test_approximate_indexes_find_most_neighbours(spec, similarity):
    corpus, queries = clusters(4_000), clusters(100, seed=3)
    index = Index.build(corpus, spec=spec, similarity=similarity, recall=0.99)
    found, scores = index.search(queries, k=10)
    exact, _ = brute_force(queries, corpus, 10, similarity)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert recall > 0.9
    assert (np.diff(scores, axis=1) <= 0).all()


def test_an_inverted_file_measures_how_many_cells_to_visit():
    corpus, queries = clusters(4_000), clusters(100, seed=3)
    index = Index.build(corpus, spec="IVF64,Flat")
    about = index.info()
    assert 1 < about["nprobe"] < 64
    assert about["recall"] >= about["target"] - 0.02
    everything, _ = index.search(queries, k=10, nprobe=64)
    np.testing.assert_array_equal(everything, brute_force(queries, corpus, 10, "cosine")[0])
    assert (index.search(queries, k=10, nprobe=1)[0] != everything).any()


def test_a_query_whose_cells_hold_too_few_visits_all():
    index = Index.build(clusters(200), spec="IVF20,Flat")
    ids, scores = index.search(clusters(5, seed=2), k=200, nprobe=1)
    assert all(sorted(row) == list(range(200)) for row in ids.tolist())
    assert np.isfinite(scores).all()


def test_places_that_a_graph_cannot_fill_are_none():
    index = Index.build(CORPUS, spec="HNSW16")
    found = index._index.search
    index._index.search = lambda q, k, params: (lambda s, p: (s, np.where(np.arange(k) < 2, p, -1)))(*found(q, k))
    ids, scores = index.search(QUERIES[:1], k=4)
    assert ids[0, 2:].tolist() == [None, None]
    assert ids[0, 0] == Index.build(CORPUS).search(QUERIES[:1], k=1)[0][0, 0]
    assert scores[0, 2:].tolist() == [-np.inf, -np.inf]


def test_building_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        Index.build(clusters(3_000), spec="IVF32,PQ4x4").save(tmp_path / name)
    for name in ("index.faiss", "ids.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    one, other = (json.loads((tmp_path / name / "index.json").read_text()) for name in ("a", "b"))
    for about in (one, other):
        about["curve"] = [point[:2] for point in about["curve"]]  # the speed is never the same
    assert one == other


def test_threads_may_share_an_index():
    index = Index.build(clusters(2_000), spec="IVF32,Flat")
    queries = clusters(64, seed=5)
    cells = [1, 4, 32, None] * 8
    alone = [index.search(queries, nprobe=n)[0] for n in cells]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: index.search(queries, nprobe=n)[0], cells))
    np.testing.assert_array_equal(alone, together)


class Shards:
    """Vectors on disk, as `Index.build` sees them."""

    dim, model = 16, "runs/x/model"

    def __len__(self):
        return len(CORPUS)

    def table(self):
        return pa.table({"id": [f"row {i}" for i in range(500)], "label": [f"label {i}" for i in range(500)]})

    def iter_shards(self):
        for start in (0, 200, 400):
            yield None, CORPUS[start : start + 200].astype("float16")

    def take(self, indices):
        return CORPUS[indices]


@pytest.mark.parametrize("spec", ["auto", "IVF8,Flat"])
def test_vectors_on_disk_are_read_shard_by_shard(spec):
    index = Index.build(Shards(), spec=spec)
    assert len(index) == 500
    assert index.model == "runs/x/model"
    assert index.search(CORPUS[[450]], k=1)[0].tolist() == [["row 450"]]
    assert index.rows(["row 450"])["label"].to_pylist() == ["label 450"]
    assert Index.build(Shards(), ids=range(500), model="other").model == "other"


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("ids", [None, [f"é{i}" for i in range(500)]])
def test_save_and_load_give_the_same_answers(tmp_path, ids, verify):
    index = Index.build(CORPUS, ids=ids, spec="IVF8,Flat", similarity="euclidean", model="m", labels=["l"] * 500)
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")  # replaces itself
    again = Index.load(tmp_path / "index", verify=verify)
    for a, b in zip(index.search(QUERIES), again.search(QUERIES), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.info() == index.info()
    assert (again.model, again.similarity, again.dim, len(again)) == ("m", "euclidean", 16, 500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


BAD_BUILDS = {
    "unknown similarity 'cosin'; did you mean 'cosine'": {"similarity": "cosin"},
    "index spec 'IVF,Flatt' cannot be built": {"spec": "IVF,Flatt"},
    "index spec 'IVF600,Flat' cannot hold": {"spec": "IVF600,Flat"},
    "2 ids for 500 vectors": {"ids": ["a", "b"]},
    "3 labels for 500 vectors": {"labels": ["a", "b", "c"]},
    "all integers": {"ids": [0.5] * 500},
    "ids must be all integers (64-bit) or": {"ids": ["a", *range(499)]},
    "1 ids are None": {"ids": ["a"] * 499 + [None]},
    "the vectors are of shape (0, 4): nothing to index": {"vectors": np.empty((0, 4))},
    "shape (4,)": {"vectors": np.ones(4)},
    "rows of one length": {"vectors": [[1.0, 2.0], [1.0]]},
    "id 1 holds NaN": {"vectors": np.array([[1, 2], [np.nan, 1]])},
    "id 'b' holds NaN": {"vectors": np.array([[1, 2], [np.inf, 1]]), "ids": ["a", "b"]},
    "id 1 is a zero vector": {"vectors": np.array([[1, 2], [0, 0]])},
    "open_vectors(path)": {"vectors": Path("vectors")},
}


@pytest.mark.parametrize("message", BAD_BUILDS)
def test_a_mistaken_build_is_answered_in_one_line(message):
    with pytest.raises(MmclError) as error:
        Index.build(**{"vectors": CORPUS} | BAD_BUILDS[message])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (np.ones((2, 15)), {}, "queries have shape (2, 15), the index holds vectors of 16 dimensions from model 'm'"),
        (np.ones((1, 2, 16)), {}, "shape (1, 2, 16)"),
        (np.full((2, 16), np.nan), {}, "query 0 holds NaN"),
        (np.eye(16)[:2] * [[1], [0]], {}, "query 1 is a zero vector"),
        (QUERIES, {"k": 0}, "k is 0"),
        (QUERIES, {"k": 2.5}, "k is 2.5"),
        (QUERIES, {"nprobe": 4}, "only inverted files"),
    ],
)
def test_a_mistaken_search_is_answered_in_one_line(queries, options, message):
    with pytest.raises(MmclError) as error:
        Index.build(CORPUS, model="m").search(queries, **options)
    assert message in str(error.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    Index.build(CORPUS).save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(MmclError, match=f"{name}: (damaged|missing).*mmcl index build"):
        Index.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3, "mmcl_version": "9.9"}, r"written by a newer mmcl \(9.9.*upgrade"),
        ({"format": "mmcl vectors"}, "does not describe a mmcl index folder"),
        ({"count": 3}, "do not belong together"),
        ({"files": {}}, "'index.faiss' is not among its files"),
        ({"similarity": "near"}, "damaged, 'similarity' is 'near'"),
        ({"similarity": "euclidean"}, "do not belong together"),
        ({"dim": 2**60}, "do not belong together"),
        ({"nprobe": "x"}, "damaged, 'nprobe' is 'x'"),
        ({"spec": None}, "damaged, 'spec' is None"),
        ({"files": []}, r"damaged, 'files' is \[\]"),
        ({"format_version": None}, "damaged, 'format_version' is None"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, change, message):
    Index.build(CORPUS).save(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MmclError, match=message):
        Index.load(tmp_path)


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


NO_UTF8 = pa.array([b"\xff\xfe"] * 500, pa.large_binary()).view(pa.large_string())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.parquet", b""),
        ("ids.parquet", b"PAR1" + b"\xff" * 50 + b"PAR1"),
        ("ids.parquet", parquet(id=NO_UTF8)),
        ("ids.parquet", parquet(id=pa.array(["x"] * 500, pa.large_string()), label=NO_UTF8)),
        ("ids.parquet", parquet(id=[0.5] * 500)),
        ("ids.parquet", parquet(id=[[1]] * 500)),
        ("ids.parquet", parquet(id=[None, *range(499)])),
        ("ids.parquet", parquet(name=[1] * 500)),
        ("index.faiss", b""),
        ("index.faiss", b"\xff" * 100),
        ("index.faiss", b"IxFI" + np.array([16], np.int32).tobytes() + np.array([2**40] * 3, np.int64).tobytes()),
        ("index.faiss", b"IxFI" + np.array([2**30], np.int32).tobytes() + b"\xff" * 60),
        ("index.faiss", b"IwFl" + b"\x7f" * 200),
    ],
)
def test_a_file_that_was_damaged_before_its_checksum_was_taken_is_named(tmp_path, name, content):
    Index.build(CORPUS, ids=[f"i{n}" for n in range(500)]).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    path = tmp_path / "index.json"
    about = json.loads(path.read_text())
    about["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(about))
    with pytest.raises(MmclError, match=name) as error:
        Index.load(tmp_path)
    assert len(str(error.value)) < len(str(tmp_path)) + 400


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(MmclError, match=r"no index\.json here"):
        Index.load(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(MmclError, match="not valid JSON"):
        Index.load(tmp_path)


def test_saving_never_replaces_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(MmclError, match=r"not replaced|is a file"):
            Index.build(CORPUS).save(target)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_leaves_the_old_index(tmp_path, monkeypatch):
    Index.build(CORPUS).save(tmp_path / "index")

    def full(*_):
        raise RuntimeError("Error in write_index at index_write.cpp:1: write error: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OSError) as error:
        Index.build(CORPUS[:5]).save(tmp_path / "index")
    assert error.value.errno == errno.ENOSPC
    assert len(Index.load(tmp_path / "index")) == 500
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_values_that_float32_cannot_hold_are_said_to_be_that(scale):
    vectors = np.eye(3) * np.array([[1.0], [scale], [1.0]])
    with pytest.raises(MmclError, match="vector 1 has values that float32 cannot hold"):
        Index.build(vectors)
    with pytest.raises(MmclError, match="vector 1 has values that float32 cannot hold"):
        Index.build(np.eye(3)).search(torch.from_numpy(vectors))
