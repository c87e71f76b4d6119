"""Encoders small enough to be looked through, and batches for them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmcl.config.model import HeadConfig, TextTowerConfig
from mmcl.data.batches.batch import Batch
from mmcl.data.identity import stable_hash
from mmcl.data.processors.image import ImageProcessor
from mmcl.formats.towers.text import build_text_tower
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.towers import Towers


class Tower(nn.Linear):
    """Four numbers, called pixels or tokens, to six."""

    width = 6

    def __init__(self):
        super().__init__(4, 6)

    def forward(self, pixels=None, input_ids=None):
        return super().forward((input_ids if pixels is None else pixels).to(self.weight.dtype))


@pytest.fixture
def make_encoder():
    def make(dim=5, logit_scale=None, logit_bias=None):
        processors = ImageProcessor(8, "crop", [0.5] * 3, [0.5] * 3), SimpleNamespace(padding_id=0)
        kinds = {"image": ImageEmbedder, "text": TextEmbedder}
        embedders = {
            name: kind(processor, Tower(), Head(HeadConfig(), 6, dim))
            for (name, kind), processor in zip(kinds.items(), processors, strict=True)
        }
        encoder = Towers(embedders, dim)
        encoder.logit_scale, encoder.logit_bias = logit_scale, logit_bias
        return encoder

    torch.manual_seed(0)
    return make


@pytest.fixture
def batch():
    """Eight rows; rows 2 and 5 have the same text. With it the features of a teacher."""
    torch.manual_seed(1)
    ids = torch.arange(8)
    inputs = {"image": {"pixels": torch.randn(8, 4)}, "text": {"input_ids": torch.randn(8, 4)}}
    teacher = {role: {"features": torch.randn(8, 6)} for role in ("image", "text")}
    text_ids = torch.where(ids == 5, 2, ids)
    return Batch(inputs, torch.stack([ids, text_ids], dim=1), seeds=ids, rows=ids, references={"teacher": teacher})


WORDS = ["a", "the", "two", "dogs", "cat", "bird", "runs", "sleeps", "sings", "on", "in", "beach", "house", "tree"]
WORDS += ["red", "old"]


@pytest.fixture(scope="session")
def tokenizer():
    """A word a token, with a token to mask by."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@pytest.fixture
def make_text_encoder(tokenizer):
    """A transformer on its own tokens; every call gives the same weights."""

    def make(dropout=0.0, dim=6, width=8, frozen=False):
        torch.manual_seed(2)
        config = TextTowerConfig(layers=2, width=width, heads=2, dropout=dropout, max_tokens=16)
        processor, tower = build_text_tower(config, tokenizer=tokenizer)
        for name, parameter in tower.named_parameters():  # else it is so near to linear that all texts are alike
            parameter.data.mul_(10 if "weight" in name and parameter.ndim == 2 else 1)
        return Towers({"text": TextEmbedder(processor, tower, Head(HeadConfig(), width, dim), frozen=frozen)}, dim)

    return make


@pytest.fixture
def make_batch():
    """Role to texts, or to numbers, as a batch for an encoder."""

    def make(encoder, **roles):
        processor = encoder.embedder("text").processor
        inputs, ids = {}, []
        for role, values in roles.items():
            if isinstance(values[0], str):
                inputs[role] = processor.collate(processor.tokenize(values)[0])
                ids.append(torch.tensor([stable_hash(text) for text in values]))
            else:
                inputs[role] = {"values": torch.tensor(values)}
        rows = torch.arange(len(ids[0]))
        return Batch(inputs, torch.stack(ids, dim=1), seeds=rows + 100, rows=rows)

    return make
