"""The token store: every caption of every row, once, and the rows without any."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.data.cache.tokens import open_tokens, pad
from mmcl.data.identity import stable_hash
from mmcl.data.sources import open_source
from mmcl.runtime.errors import MmclError

CAPTIONS = [["a dog", "two dogs"], ["a cat"], [], None, ["a dog", " "], ["the end"]]


def letters(texts):
    return [np.array([ord(letter) for letter in text], dtype=np.int32) for text in texts], 0


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": c}) + "\n" for i, c in enumerate(CAPTIONS)))
    return open_source(path)


def test_each_caption_comes_back_and_blank_ones_do_not(rows):
    tokens = open_tokens(rows, "text", letters, tokenizer_key="letters")
    assert tokens.first.tolist() == [0, 2, 3, 3, 3, 4, 5]
    assert tokens.empty == [2, 3]
    texts = ["".join(map(chr, ids)) for ids in tokens.take(np.arange(5))]
    assert texts == ["a dog", "two dogs", "a cat", "a dog", "the end"]
    assert tokens.hashes.tolist() == [stable_hash(ids.tobytes()) for ids in letters(texts)[0]]
    assert tokens.contents.tolist() == tokens.hashes.tolist()


def test_which_texts_are_the_same_can_be_distinguished_from_what_their_tokens_are(rows):
    def alike(texts, tokens):
        assert [len(ids) for ids in tokens] == [len(text) for text in texts]
        return np.array([len(text) for text in texts])

    tokens = open_tokens(rows, "text", letters, tokenizer_key="lengths", identify=alike)
    assert tokens.hashes.tolist() == [5, 8, 5, 5, 7]
    assert len(set(tokens.contents.tolist())) == 4


def test_a_second_opening_reads_the_cache_until_the_tokenizer_changes(rows):
    calls = []

    def counting(texts):
        calls.append(len(texts))
        return letters(texts)

    for key in ("one", "one", "two"):
        open_tokens(rows, "text", counting, tokenizer_key=key)
    assert calls == [5, 5]


def test_how_many_were_cut_is_kept_with_the_tokens(rows):
    def shortened(texts):
        return [ids[:5] for ids in letters(texts)[0]], sum(len(text) > 5 for text in texts)

    for _ in range(2):
        tokens = open_tokens(rows, "text", shortened, tokenizer_key="five letters")
        assert (tokens.cut, len(tokens.hashes)) == (2, 5)


def test_a_row_without_text_can_stop_the_run_and_is_named(rows):
    with pytest.raises(MmclError, match=r"row r2 has no text in column 'text' \(2 rows in all\)"):
        open_tokens(rows, "text", letters, tokenizer_key="letters", on_error="fail")


def test_padding_gives_every_text_its_tokens_and_marks_them():
    texts = [np.array(ids, dtype=np.int32) for ids in ([5, 6, 7], [], [8])]
    ids, mask = pad(texts, 9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    assert [each.shape for each in pad(texts[1:2], 0)] == [(1, 1), (1, 1)]


def test_the_row_of_a_caption_is_known(rows):
    tokens = open_tokens(rows, "text", letters, tokenizer_key="letters")
    assert tokens.row_of(np.arange(5)).tolist() == [[0, 0, 1, 4, 5], [0, 1, 0, 0, 0]]
