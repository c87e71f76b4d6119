"""The token store: every caption of every row, once, and the rows without any."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.data.identity import stable_hash
from mmcl.data.sources import open_source
from mmcl.data.tokens import open_tokens
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
    assert tokens.hashes.tolist() == [stable_hash(text) for text in texts]


def test_a_second_opening_reads_the_cache_until_the_tokenizer_changes(rows):
    calls = []

    def counting(texts):
        calls.append(len(texts))
        return letters(texts)

    for key in ("one", "one", "two"):
        open_tokens(rows, "text", counting, tokenizer_key=key)
    assert calls == [5, 5]


def test_a_row_without_text_can_stop_the_run_and_is_named(rows):
    with pytest.raises(MmclError, match=r"row r2 has no text in column 'text' \(2 rows in all\)"):
        open_tokens(rows, "text", letters, tokenizer_key="letters", on_error="fail")
