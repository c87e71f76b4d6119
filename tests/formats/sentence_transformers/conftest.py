"""Folders of transformers with tiny models, and one of sentence-transformers."""

from __future__ import annotations

import pytest
import torch
import transformers

from mmcl.config.model import TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.models.layers import Dense

from .made import CORPUS, KINDS, SMALL, byte_pairs, made_here


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folders of transformers with tiny models of several kinds; the decoder's tokenizer pads on the left."""
    folders = {}
    pieces = train_tokenizer(CORPUS, TokenizerConfig(vocab_size=40, lowercase=False), 10**6)
    for kind, (name, settings) in KINDS.items():
        torch.manual_seed(0)
        tokenizer = byte_pairs() if kind == "qwen2" else pieces
        config = getattr(transformers, f"{name}Config")(
            **SMALL, **settings, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=0
        )
        net = getattr(transformers, f"{name}Model")(config)
        with torch.no_grad():
            for parameter in net.parameters():  # biases and gains start at 0 and 1, which would hide their loss
                parameter.add_(0.1 * torch.randn_like(parameter))
        folders[kind] = tmp_path_factory.mktemp(kind)
        net.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


@pytest.fixture
def folder(plain, tmp_path):
    """A good folder, with a dense layer, for the tests to break."""
    made_here(plain["bert"], "mean", [Dense(8)]).save(tmp_path / "model")
    (tmp_path / "model" / "mmcl.json").unlink()
    return tmp_path / "model"
