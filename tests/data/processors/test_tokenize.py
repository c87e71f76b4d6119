"""Tokenizers that cannot tokenise are refused: every text would have one vector."""

from __future__ import annotations

import json

import pytest

from mmcl.formats.tokenizers import read_tokenizer
from mmcl.runtime.errors import MmclError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_folder(folder, *words):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return folder


@pytest.mark.parametrize("words", [[], SPECIAL, [*SPECIAL, "one"]])
def test_a_vocabulary_that_tells_no_texts_apart_is_refused(tmp_path, words):
    with pytest.raises(MmclError, match="gives the same for all texts"):
        read_tokenizer(bert_folder(tmp_path, *words))


def test_a_vocabulary_of_any_language_is_read(tmp_path):
    tokenizer = read_tokenizer(bert_folder(tmp_path, *SPECIAL, "狗", "车"))
    assert tokenizer("狗车")["input_ids"] == [2, 5, 6, 3]


def test_a_vocabulary_whose_merges_are_lost_is_refused(tmp_path):
    letters = [f"{letter}</w>" for letter in "abcdefghij"]
    words = [f"{first}{second}{third}</w>" for first in "abcdefghij" for second in "klmnop" for third in "qrstu"]
    vocabulary = {piece: i for i, piece in enumerate([*"abcdefghijklmnopqrstu", *letters, *words, "<|endoftext|>"])}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(MmclError, match=r"merges\.txt"):
        read_tokenizer(tmp_path)


def test_a_tokenizers_file_that_is_a_pointer_is_said_to_be_one(tmp_path):
    folder = bert_folder(tmp_path, *SPECIAL, "one", "two")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(MmclError, match=r"tokenizer\.json: a git-lfs pointer, not the file itself; run 'git lfs pull'"):
        read_tokenizer(folder)
