"""Tokenizers in which a word is a token."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.models.text.token_weights import token_frequencies

TEXTS = [
    "The dog's  house, the doghouse!",
    "Ｔhe Dog sat; the cat sat.",
    "A café in the rain",
    "cats and dogs, too",
] * 3
RARE = ["Seldom words: zebras quiz", "vexed foxes jump", "houses"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS, *RARE], TokenizerConfig(words=20, vocab_size=60), 32)


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_frequent_words_are_whole_and_others_are_put_together_of_pieces(tokenizer):
    assert tokens(tokenizer, "THE  dog, the doghouse") == ["▁the", "▁dog", "▁,", "▁the", "▁doghouse"]
    for word in ("zebras", "foxhouse", "doghouses"):
        pieces = tokens(tokenizer, word)
        assert len(pieces) > 1
        assert "".join(pieces) == f"▁{word}"


def test_words_have_their_frequency_in_the_texts(tokenizer):
    text = " ".join([*TEXTS, *RARE]).lower().replace("ｔ", "t")
    counted = Counter(re.findall(r"\w+|[^\w\s]+", text))
    frequency = token_frequencies(tokenizer, "here")
    known = [word for word, count in counted.items() if count > 1]
    assert len(known) == 20
    for word in known:
        found = frequency[tokenizer.convert_tokens_to_ids(f"▁{word}")].item()
        assert found == pytest.approx(counted[word] / counted.total(), rel=1e-5)


def test_it_is_read_as_it_was_written(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "The DOG vexed 3 zebras\n(too)"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again("the dog sat")["input_ids"], skip_special_tokens=True) == "the dog sat"


def test_more_words_than_there_are():
    tokenizer = train_tokenizer(["one two", "two three"], TokenizerConfig(words=100, vocab_size=30), 32)
    assert tokens(tokenizer, "three one") == ["▁three", "▁one"]
    assert len(tokens(tokenizer, "tone")) > 1
