"""Search with a model in an index in Milvus: what a search in an index over FAISS of the same vectors finds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

pytest.importorskip("pymilvus")

from mmcl.retrieval import Fusion, Index, LexicalIndex, Like, Searcher
from mmcl.retrieval.milvus.index import MilvusIndex
from mmcl.runtime.errors import MmclError

TEXTS = ["a red dog", "a blue car", "a green tree", "the red car", "two dogs and a tree", "a boat"]
IDS = list("abcdef")
COLUMNS = {
    "colour": ["red", "blue", "green", "red", None, None],
    "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "tags": [["x"], ["x", "y"], [], ["y"], None, ["z"]],
    "added": [datetime(2024, 1, 1 + row, tzinfo=UTC) for row in range(6)],
    "new": [True, False, None, True, False, True],
}


@pytest.fixture(scope="module", params=["strings", "integers"])
def both(request, tiny, tmp_path_factory):
    """Searchers in an index in Milvus and in one over FAISS, and the ids of their six things."""
    encoder = tiny("image", "text")
    ids = IDS if request.param == "strings" else list(range(10, 16))
    about = {"ids": ids, "labels": TEXTS, "columns": COLUMNS, "show_progress": False}
    uri = str(tmp_path_factory.mktemp("milvus") / "milvus.db")
    indexes = (
        MilvusIndex.build(encoder.encode(TEXTS), spec="FLAT", uri=uri, **about),
        Index.build(encoder.encode(TEXTS), **about),
    )
    return *(Searcher(index, encoder, lexical=LexicalIndex.build(TEXTS, ids)) for index in indexes), ids


def same(found, expected):
    """Results, or lists of them, that differ in nothing but the last digits of their scores."""
    if isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    assert (found.rank, found.id, found.label, found.columns) == (
        *(expected.rank, expected.id, expected.label, expected.columns),
    )
    assert found.score == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "price > 2 and colour = 'red'"},
        {"where": "tags contains 'y' or new"},
        {"where": "not (added < '2024-01-03') and id != 'x' and label like '%a%'"},
        {"where": "price > 100"},
        {"hybrid": True},
        {"hybrid": Fusion((0.5, 0.5)), "where": "price >= 3"},
    ],
)
def test_every_kind_of_query_finds_what_faiss_finds(both, photo, options):
    in_milvus, in_faiss, ids = both
    if isinstance(ids[0], int) and "where" in options:
        options = options | {"where": options["where"].replace("id != 'x'", "id != 3")}
    mix = [("a red dog", 1.0), (photo, 0.5), (Like(ids[1]), 0.3), ("a boat", -0.4)]
    queries = ["a red dog", photo, Like(ids[2]), Like(str(ids[3])), mix]
    for k in (1, 3, 10):
        same(in_milvus.search(queries, k, **options), in_faiss.search(queries, k, **options))
    same(in_milvus.search(mix, 4, **options), in_faiss.search(mix, 4, **options))
    for searcher in both[:2]:
        assert ids[2] not in [one.id for one in searcher.search(Like(ids[2]), 10, **options)]


def test_a_thing_of_several_vectors_is_left_out_with_all_of_them(tiny, tmp_path):
    encoder = tiny("text")
    vectors, ids = encoder.encode(TEXTS), [10, 11, 12, 12, 12, 13]
    index = MilvusIndex.build(vectors, ids, "FLAT", uri=str(tmp_path / "milvus.db"), show_progress=False)
    expected = Searcher(Index.build(vectors, ids, show_progress=False), encoder)
    for k in (1, 2, 3, 9):
        same(Searcher(index, encoder).search(Like(12), k), expected.search(Like(12), k))


def test_words_find_a_thing_of_which_any_vector_fulfils_the_condition(tiny, tmp_path):
    encoder = tiny("text")
    ids = ["a", "a", "b", "b", "c", "c"]
    about = {"ids": ids, "labels": TEXTS, "columns": {"price": COLUMNS["price"]}, "show_progress": False}
    lexical = LexicalIndex.build(TEXTS, ids)
    index = MilvusIndex.build(encoder.encode(TEXTS), spec="FLAT", uri=str(tmp_path / "milvus.db"), **about)
    searchers = [
        Searcher(one, encoder, lexical=lexical) for one in (index, Index.build(encoder.encode(TEXTS), **about))
    ]
    for where, passing in {"price = 2": "a", "price > 3": "bc", "price = 3 or price > 5": "bc"}.items():
        assert {one.id for one in searchers[0].search("red dogs, a car, a tree", 3, hybrid=True, where=where)} == set(
            passing
        )
        for query in TEXTS:
            for hybrid in (True, Fusion((0.2, 0.8), depth=1)):
                same(*(one.search(query, 1, hybrid=hybrid, where=where) for one in searchers))
        for one in searchers:
            assert one.index.has(["c", "a", "b"], where=where).tolist() == [name in passing for name in "cab"]
    for one in searchers:
        with pytest.raises(MmclError, match="no vector of id 'a' fulfils: price > 3"):
            one.index.rows(["b", "a"], where="price > 3")


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (Like("zz"), {}, "zz"),
        ("red", {"where": "weight > 2"}, "no column 'weight'"),
        ("red", {"where": "price >"}, "price"),
    ],
)
def test_bad_queries_are_refused(both, query, options, message):
    with pytest.raises(MmclError, match=message if isinstance(both[2][0], str) or query == "red" else "whole numbers"):
        both[0].search(query, **options)
