"""Texts to token ids: prompts, cuts, identities, and whatever else a text may hold."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.runtime.errors import MmclError

WORDS = [f"{a} {b}" for a in ("red", "green", "blue", "small") for b in ("shoe", "shirt", "watch", "bag")]
TEXTS = ["red shoe", "a small green bag and a blue watch", "Blue SHIRT", "", "shoe"]
QUERY, PASSAGE = "query: ", "the small passage: "


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*WORDS, QUERY, PASSAGE] * 5, TokenizerConfig(vocab_size=70, lowercase=False), 32)


def make(tokenizer, **settings):
    return TextProcessor(tokenizer, max_tokens=30, **settings)


def test_the_key_tells_what_tokenize_would_give(tokenizer):
    processors = [
        make(tokenizer),
        make(tokenizer, prompts={"query": QUERY}, default_prompt="query"),
        make(tokenizer, prompts={"query": PASSAGE}, default_prompt="query"),
    ]
    processors.append(make(tokenizer))
    processors[-1].max_tokens = 20
    assert len({processor.key() for processor in processors}) == len(processors)
    assert make(tokenizer, prompts={"query": QUERY}).key() == processors[0].key()  # named by nobody


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_cut_as_transformers_cuts(tokenizer, side):
    processor = make(tokenizer)
    processor.max_tokens = 7
    texts = [*TEXTS, "red " * 300]
    tokenizer.truncation_side = side
    try:
        rows, cut = processor.tokenize_marked(texts)
        wanted = tokenizer(texts, truncation=True, max_length=7)["input_ids"]
    finally:
        tokenizer.truncation_side = "right"
    assert [row.tolist() for row in rows] == wanted
    assert all(row.dtype == np.int32 for row in rows)
    assert cut.tolist() == [len(ids) > 7 for ids in tokenizer(texts, truncation=False)["input_ids"]]
    assert processor.tokenize(texts)[1] == cut.sum() > 1


@pytest.mark.parametrize("text", ["a" * 100_000, "red shoe " * 11_112, "é" * 100_000, "漢字" * 50_000, "!?" * 50_000])
def test_a_very_long_text_takes_no_seconds(tokenizer, text):
    processor = make(tokenizer)
    start = time.process_time()
    processor.tokenize([text])
    assert time.process_time() - start < 2


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", float("nan")])
def test_what_is_no_text_is_named(tokenizer, wrong):
    with pytest.raises(MmclError, match=f"text 1 is a {type(wrong).__name__}"):
        make(tokenizer).tokenize(["red", wrong])


@pytest.mark.parametrize("prompt", [None, "query", "passage"])
def test_texts_are_the_same_where_their_own_tokens_are_as_far_as_they_are_read(tokenizer, prompt):
    processor = make(tokenizer, prompts={"query": QUERY, "passage": PASSAGE}, lowercase=True)
    long = "red shoe " * 40
    texts = ["blue shirt", "Blue  SHIRT ", "blue shirts", "", " ", long + "red", long + "blue bag"]
    names = processor.identities(texts, prompt).tolist()
    assert names[0] == names[1] == processor.identities(["blue shirt"])[0], "whatever the prompt"
    assert names[3] == names[4]
    assert names[5] == names[6], "what is cut does not count"
    assert len(set(names)) == 4
    tokens, _ = processor.tokenize(texts, prompt)
    assert processor.identities(texts, prompt, tokens).tolist() == names
    bytes_of = [ids.tobytes() for ids in tokens]
    for one in range(len(texts)):
        for other in range(len(texts)):
            assert (names[one] == names[other]) == (bytes_of[one] == bytes_of[other])
