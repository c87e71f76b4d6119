"""BM25 beside its formula, and what becomes of its files."""

from __future__ import annotations

import math
import re
import threading

import numpy as np
import pytest

from mmcl.retrieval.search.lexical import LexicalIndex, words_of
from mmcl.runtime.errors import MmclError

TEXTS = ["a red shoe", "two red shoes and a hat", "the hat", "red red red", None, "running shoe for running"]


def by_formula(texts: list[list[str]], query: list[str], k1: float, b: float) -> np.ndarray:
    """BM25 of Lucene in float64, term by term and document by document."""
    mean = np.mean([len(text) for text in texts])
    scores = []
    for text in texts:
        total = 0.0
        for term in query:
            holding = sum(term in other for other in texts)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            times = text.count(term)
            total += idf * times / (times + k1 * (1 - b + b * len(text) / mean)) if times else 0
        scores.append(total)
    return np.array(scores)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (0.0, 0.0)])
def test_scores_equal_the_formula(k1, b):
    rng = np.random.default_rng(0)
    vocabulary = [f"w{number}" for number in range(40)]
    texts = [rng.choice(vocabulary, rng.integers(1, 30)).tolist() for _ in range(60)]
    lexical = LexicalIndex.build([" ".join(text) for text in texts], language="none", k1=k1, b=b)
    for length in (1, 3, 12):
        query = rng.choice(vocabulary, length).tolist()  # with repetitions
        expected = by_formula(texts, query, k1, b)
        np.testing.assert_allclose(lexical.scores(" ".join(query)), expected, rtol=1e-5, atol=1e-6)
        ids, scores, _ = lexical.search([" ".join(query)], k=10)
        best = np.argsort(-lexical.scores(" ".join(query)), kind="stable")[:10]
        assert ids[0].tolist() == [row if expected[row] > 0 else None for row in best.tolist()]
        assert (np.diff(scores[0]) <= 0).all()


def test_words_are_found_in_any_form_but_stop_words_are_not():
    lexical = LexicalIndex.build(TEXTS, list("abcdef"))
    assert sorted(lexical.search(["SHOES"], k=3).ids[0]) == ["a", "b", "f"]
    assert lexical.search(["the"], k=2).ids.tolist() == [[None, None]]
    assert lexical.search(["unheard of"], k=1).scores.tolist() == [[-math.inf]]
    exactly = LexicalIndex.build(TEXTS, language="none")
    assert exactly.search(["shoes"], k=2).ids.tolist() == [[1, None]]
    assert exactly.search(["the"], k=1).ids.tolist() == [[2]]
    assert list(words_of("Häuser und Gärten", "german")) == list(words_of("haus gart", "german"))
    assert list(words_of("Ｆｕｌｌ width, 東京!", "none")) == ["full", "width", "東", "京"]


def test_weighted_queries_add_up():
    lexical = LexicalIndex.build(TEXTS)
    mixed = lexical.scores([("red", 1.0), ("hat", 0.5), ("shoe", -0.25)])
    expected = lexical.scores("red") + 0.5 * lexical.scores("hat") - 0.25 * lexical.scores("shoe")
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_of_equal_ids_the_best_text_counts_and_equal_scores_keep_their_order():
    lexical = LexicalIndex.build(["red", "red red hat", "red", "hat"], [7, 8, 7, 7])
    assert lexical.search(["hat"], k=3).ids.tolist() == [[7, 8, None]]
    tied = LexicalIndex.build(["red shoe"] * 50 + ["blue"], range(51))
    assert tied.search(["red"], k=4).ids.tolist() == [[0, 1, 2, 3]]


def test_only_ids_that_pass_are_found_however_few():
    texts = ["red"] * 5000
    asked = []

    def keep(query, ids):
        asked.append(len(ids))
        return np.isin(ids, [3, 4321] if query == 0 else [17])

    lexical = LexicalIndex.build(texts)
    assert lexical.search(["red", "red"], k=3, keep=keep).ids.tolist() == [[3, 4321, None], [17, None, None]]
    asked.clear()
    lexical.search(["red"], k=1, keep=keep)
    assert sum(asked) < 2000  # the first found suffices


def test_a_saved_index_answers_the_same_and_a_damaged_one_is_refused(tmp_path):
    lexical = LexicalIndex.build(TEXTS, list("abcdef"), source="shop.csv")
    lexical.save(tmp_path / "words")
    opened = LexicalIndex.load(tmp_path / "words")
    assert opened.info() == lexical.info()
    assert (
        opened.search(["red shoes", "hat"], k=4).ids.tolist() == lexical.search(["red shoes", "hat"], k=4).ids.tolist()
    )
    lexical.save(tmp_path / "words")  # replaced, while the old one is open
    path = tmp_path / "words" / "data.csc.index.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(MmclError, match=re.escape(str(path))):
        LexicalIndex.load(tmp_path / "words")
    with pytest.raises(MmclError, match=r"mmcl index lexical"):
        LexicalIndex.load(tmp_path / "nothing")


def test_threads_stem_alike():
    words = [f"{stem}{ending}" for stem in ("walk", "jump", "shoe", "nation") for ending in ("", "s", "ing", "al")] * 50
    expected = [list(words_of(word)) for word in words]
    words_of.__globals__["_analysis"].cache_clear()
    found: list[list[list[str]]] = []
    threads = [
        threading.Thread(target=lambda: found.append([list(words_of(word)) for word in words])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": ["the", ""]}, "none of 2 has a word"),
        ({"texts": []}, "none of 0 has a word"),
        ({"language": "klingon"}, "language 'klingon' is not known"),
        ({"k1": -1.0}, "k1 is -1"),
        ({"b": 1.5}, "b is 1.5"),
        ({"ids": ["x"]}, "1 ids for 2"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(MmclError, match=message):
        LexicalIndex.build(**({"texts": ["red", "blue"]} | settings))
