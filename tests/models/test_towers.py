from __future__ import annotations

import pytest

from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Conventions, Towers
from mmcl.runtime.errors import MmclError


def texts(*names):
    """Towers of texts by these names."""
    settings = TextTowerConfig(layers=1, width=16, heads=2, tokenizer={"vocab_size": 40})
    tokenizer = train_tokenizer(["a red bicycle", "two dogs", "the sea at night"], settings.tokenizer, 20)
    embedders = {
        name: TextEmbedder(*build_text_tower(settings, tokenizer), Head(HeadConfig(), 16, 8)) for name in names
    }
    return Towers(embedders, 8, "tiny")


def test_towers_are_found_by_name_and_the_only_one_of_a_modality_by_that():
    alone = texts("user")
    assert (alone.names, alone.modalities, alone.resolve("text")) == (["user"], {"text"}, "user")
    assert alone.embedder("text") is alone.embedder("user")
    both = texts("question", "answer")
    assert both.embedder("answer") is both.embedders["answer"]
    assert both.of_modality("text") == ["answer", "question"]
    with pytest.raises(MmclError, match="several text towers; name one: answer or question"):
        both.embedder("text")
    with pytest.raises(
        MmclError, match=r"embeds text only \(towers answer and question\), and cannot take image input"
    ):
        both.embedder("image")


def test_names_are_words():
    with pytest.raises(MmclError, match=r"tower 'a/b': name it by letters"):
        Towers({"a/b": texts("user").embedder("user")}, 8)


@pytest.mark.parametrize("name", ["items", "type", "training"])
def test_names_of_torchs_own_are_refused(name):
    with pytest.raises(MmclError, match=f"tower '{name}': torch needs this name itself; take another"):
        texts("user", name)


def test_heads_are_no_part_of_the_network():
    towers = texts("text")
    names = list(towers.state_dict())
    assert all(name.startswith("embedders.text.") for name in names)
    towers.heads = {"projector": Head(HeadConfig(kind="tanh"), 8, 8)}
    assert list(towers.state_dict()) == names
    assert len(list(towers.parameters())) == len(list(towers.embedders.parameters()))


def test_vectors_are_cut_where_they_are_meant_to_be():
    towers = texts("text")
    assert (towers.width, towers.dim) == (8, 8)
    towers.conventions = Conventions(truncate_dim=5)
    assert (towers.width, towers.dim) == (8, 5)
