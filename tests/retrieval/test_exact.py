"""Exact search against all products in float64, and against faiss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmcl.encoding import VectorWriter, open_vectors
from mmcl.retrieval import exact
from mmcl.retrieval.exact import exact_search
from mmcl.retrieval.products import Space
from mmcl.runtime.errors import MmclError

SIMILARITIES = ["cosine", "dot", "euclidean"]


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def units(request, monkeypatch):
    """With products in bfloat16, whether or not this machine is fast at them, and in float32."""
    monkeypatch.setattr(exact, "multiplies_bfloat16", lambda device: request.param)
    return request.param


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that a few thousand vectors are many."""
    monkeypatch.setattr(exact, "_TILES", {"cpu": (32, 256)})


def clustered(rng, rows, dim=48, clusters=40, spread=0.5):
    centres = np.random.default_rng(9).standard_normal((clusters, dim))
    return (centres[rng.integers(clusters, size=rows)] + spread * rng.standard_normal((rows, dim))).astype(np.float32)


def by_hand(queries, corpus, similarity):
    """(Q, N) similarities in float64."""
    queries, corpus = np.asarray(queries, np.float64), np.asarray(corpus, np.float64)
    if similarity == "euclidean":
        return -np.linalg.norm(queries[:, None] - corpus[None], axis=2)
    if similarity == "cosine":
        queries, corpus = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, corpus))
    return queries @ corpus.T


def check(found, table, k, atol=1e-6):
    """The scores are the k best ones, and those of their positions, of which none comes twice."""
    positions, scores = found
    assert positions.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, -np.sort(-table, axis=1)[:, :k], atol=atol, rtol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(table, positions, 1), atol=atol, rtol=1e-5)
    assert all(len(set(row)) == k for row in positions.tolist())


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_best_are_found(units, small_tiles, similarity):
    rng = np.random.default_rng(0)
    queries, corpus = clustered(rng, 70), clustered(rng, 3100)
    for k in (1, 10, 300):
        check(exact_search(queries, corpus, k, similarity=similarity), by_hand(queries, corpus, similarity), k, 1e-5)


def test_results_are_those_of_faiss(units):
    rng = np.random.default_rng(1)
    queries, corpus = (clustered(rng, rows, dim=384) for rows in (200, 20_000))
    faiss.normalize_L2(queries)
    faiss.normalize_L2(corpus)
    flat = faiss.IndexFlatIP(384)
    flat.add(corpus)
    theirs, ids = flat.search(queries, 101)
    positions, scores = exact_search(queries, corpus, 100)
    np.testing.assert_allclose(scores, theirs[:, :100], atol=1e-6)
    gaps = theirs[:, :-1] - theirs[:, 1:] > 1e-6
    clear = gaps[:, :100] & np.pad(gaps, ((0, 0), (1, 0)), constant_values=True)[:, :100]
    assert clear.mean() > 0.9
    assert (positions == ids[:, :100])[clear].all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    similarity=st.sampled_from(SIMILARITIES),
    scale=st.sampled_from([1e-18, 1e-3, 1.0, 1e4, 1e15]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    equal=st.booleans(),
)
def test_whatever_the_vectors_the_bound_holds(seed, similarity, scale, offset, equal):
    """No product is further from its score than the bound says: of offset, tiny, huge and repeated vectors."""
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(1, 200))
    lengths = np.exp(rng.normal(0, 2, (150, 1)))
    corpus = (rng.standard_normal((150, dim)) * lengths + offset) * scale
    queries = (rng.standard_normal((20, dim)) + offset) * scale
    if equal:
        corpus[50:100] = corpus[:50]
    left, right = torch.from_numpy(queries).float(), torch.from_numpy(corpus).float()
    space = Space(similarity, right.mean(0) if similarity == "euclidean" else None)
    asked, documents = space.queries(left), space.documents(right)
    assume(bool(torch.isfinite(documents.norms).all()))  # others are refused
    rows, columns = (part.flatten() for part in torch.meshgrid(torch.arange(20), torch.arange(150), indexing="ij"))
    scores = space.scores(asked, documents, rows, columns).view(20, 150)
    if equal:
        assert torch.equal(scores[:, 50:100], scores[:, :50])
    true = torch.stack([space.of_scores(asked, scores[:, column]) for column in range(150)], 1)
    for dtype in (torch.float32, torch.bfloat16):
        products = space.products(asked, documents, dtype)
        slack = space.slack(asked, documents, dtype)[:, None]
        assert (products >= (true - slack).to(products.dtype)).all()
        assert (products <= (true + slack).to(products.dtype)).all()


def test_of_equal_documents_the_first_come_first(units, small_tiles):
    rng = np.random.default_rng(3)
    distinct = clustered(rng, 300)
    order = rng.integers(0, 300, 4000)
    corpus, queries = distinct[order], clustered(rng, 40)
    for similarity in SIMILARITIES:
        positions, scores = exact_search(queries, corpus, 60, similarity=similarity)
        table = by_hand(queries, distinct, similarity)[:, order].round(5)
        expected = np.argsort(-table, axis=1, kind="stable")[:, :60]
        assert (positions == expected).mean() > 0.99  # but where different vectors are as near as rounding
        equal = scores[:, 1:] == scores[:, :-1]
        assert equal.any()
        assert (np.diff(positions, axis=1) > 0)[equal].all()


def test_a_corpus_of_one_vector_is_found_in_its_order(units, small_tiles):
    corpus = np.tile(np.float32([[0.1, 0.7, -0.3]]), (5000, 1))
    positions, _ = exact_search(np.float32([[1, 2, 3], [3, 2, 1]]), corpus, 50)
    assert (positions == np.arange(50)).all()


def test_vectors_that_bfloat16_cannot_tell_apart_are_told_apart(small_tiles, monkeypatch):
    monkeypatch.setattr(exact, "multiplies_bfloat16", lambda device: True)
    rng = np.random.default_rng(4)
    corpus = (1 + 1e-3 * rng.standard_normal((4000, 32))).astype(np.float32)
    queries = rng.standard_normal((50, 32)).astype(np.float32)
    for similarity in ("dot", "euclidean"):
        check(exact_search(queries, corpus, 5, similarity=similarity), by_hand(queries, corpus, similarity), 5, 1e-5)


@pytest.mark.parametrize("setting", ["tf32", "bf16"])
def test_the_best_are_found_whatever_the_process_allows_of_float32_products(setting, monkeypatch):
    monkeypatch.setattr(exact, "multiplies_bfloat16", lambda device: False)
    rng = np.random.default_rng(8)
    queries, corpus = clustered(rng, 20), clustered(rng, 600)
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, setting
    try:
        found = exact_search(queries, corpus, 10)
    finally:
        products.fp32_precision = before
    check(found, by_hand(queries, corpus, "cosine"), 10)


def test_documents_that_come_in_ascending_order_are_all_looked_at(units, small_tiles):
    corpus = np.linspace(-1, 1, 6000, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    positions, _ = exact_search(np.ones((3, 8), np.float32), corpus, 20, similarity="dot")
    assert (positions == np.arange(5999, 5979, -1)).all()


def test_arrays_tensors_maps_and_vectors_on_disk_give_the_same(tmp_path, small_tiles):
    rng = np.random.default_rng(5)
    queries, corpus = clustered(rng, 30, dim=16), clustered(rng, 1500, dim=16)
    expected = exact_search(queries, corpus, 7)
    np.save(tmp_path / "corpus.npy", corpus)
    with VectorWriter(tmp_path / "vectors", dim=16, model=None, shard_rows=400) as writer:
        for start in range(0, 1500, 300):
            writer.append(np.arange(start, start + 300), corpus[start : start + 300])
    for form in (
        torch.from_numpy(corpus),
        corpus.tolist(),
        np.load(tmp_path / "corpus.npy", mmap_mode="r"),
        open_vectors(tmp_path / "vectors"),
    ):
        for ours, theirs in zip(exact_search(queries, form, 7), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    half = exact_search(queries, corpus.astype(np.float16), 7)
    check(half, by_hand(queries, corpus.astype(np.float16), "cosine"), 7)


def test_memory_is_shared_out_and_the_result_does_not_depend_on_it(units):
    rng = np.random.default_rng(6)
    queries, corpus = clustered(rng, 700, dim=64), clustered(rng, 3000, dim=64)
    expected = exact_search(queries, corpus, 10)
    plan = exact._Plan.of(64, 10, 2**21, torch.device("cpu"))
    assert plan.at_once < 10_000
    assert plan.queries * plan.documents < 1024 * 4096
    for ours, theirs in zip(exact_search(queries, corpus, 10, memory=2**21), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(MmclError, match=r"memory is 1,000 bytes; k = 10 and 64 dimensions need [\d,]+ at least"):
        exact_search(queries, corpus, 10, memory=1000)


IN_MEMORY = """
import sys
import numpy as np
from mmcl.retrieval import exact

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

exact.multiplies_bfloat16 = lambda device: sys.argv[1] == "bfloat16"
rng = np.random.default_rng(0)
corpus, queries = (rng.standard_normal((rows, 256), dtype=np.float32) for rows in (20_000, 1_500))
exact.exact_search(queries[:50], corpus[:3000], 50)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
exact.exact_search(queries, corpus, 50, memory=32 * 2**20)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which says how much memory it took"
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_more_memory_is_taken_than_is_given(dtype):
    done = subprocess.run([sys.executable, "-c", IN_MEMORY, dtype], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 2**20


def test_there_may_be_fewer_documents_or_no_queries():
    positions, scores = exact_search(np.eye(3), np.eye(3)[:2], 5)
    assert positions.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert scores[2].tolist() == [0, 0]
    assert exact_search(np.empty((0, 3)), np.eye(3), 2)[0].shape == (0, 2)
    assert exact_search(np.eye(3), np.empty((0, 3)), 2)[0].shape == (3, 0)


def test_a_zero_vector_has_cosine_zero_and_long_vectors_have_cosines():
    positions, scores = exact_search([[1e20, 0]], [[0.0, 0], [-1e-20, 0], [3e20, 3e20]], 3)
    assert positions.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(scores, [[0.5**0.5, 0, -1]], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.eye(2), np.eye(3), 1), {}, "queries have 2 dimensions, the corpus has 3"),
        ((np.eye(2), np.ones(2), 1), {}, r"corpus: expected an \(N, D\) array"),
        ((np.eye(2), np.eye(2), 0), {}, "k is 0"),
        ((np.eye(2), np.eye(2), 1.5), {}, "k is 1.5"),
        ((np.eye(2), np.eye(2), 1), {"similarity": "cos"}, "unknown similarity 'cos'"),
        ((np.eye(2), [[1, 0], [np.nan, 1]], 1), {}, "corpus: the vector of row 1 has a NaN"),
        ((np.eye(2), [[np.nan, 0], [1, 1]], 1), {"similarity": "euclidean"}, "corpus: the vector of row 0 has a NaN"),
        (([[1, 0], [0, np.inf]], np.eye(2), 1), {"similarity": "dot"}, "queries: the vector of row 1 has"),
        ((np.eye(2), [[1e30, 0]], 1), {"similarity": "dot"}, "numbers too large to multiply"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, options, message):
    with pytest.raises(MmclError, match=message) as caught:
        exact_search(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_the_best_of_one_query_is_found():
    for documents in (1, 2, 5):
        positions, scores = exact_search(np.eye(5)[:1], np.eye(5)[:documents], 1)
        assert (positions.tolist(), scores.tolist()) == ([[0]], [[1.0]])
