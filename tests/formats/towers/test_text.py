"""Text towers of other packages: trained, saved, loaded, and what cannot be done with them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmcl
from mmcl.config import load_config
from mmcl.formats.export import cannot_export
from mmcl.formats.towers.registered import TEXT_TOWERS
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method

SOURCE = '''
import torch

PRETRAINED = []


class Words(torch.nn.Module):
    """The mean of token vectors."""

    def __init__(self, vocabulary, width, flat=True):
        super().__init__()
        self.vectors, self.flat = torch.nn.Embedding(vocabulary, width), flat

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[:, :, None].float()
        vectors = self.vectors(input_ids) * mask
        return vectors.sum(dim=1) / mask.sum(dim=1) if self.flat else vectors


def words(name, config, vocabulary):
    """Averaged token vectors, as `words:WIDTH`."""
    PRETRAINED.append(config.pretrained)
    return Words(vocabulary, int(name) * config.args.get("times", 1), config.args.get("flat", True))
'''
ROWS = [
    f"{colour} {thing} on a {place}" for colour in ("red", "blue") for thing in ("dog", "car", "hat") for place in "abc"
]


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """A package with a tower, as pip would install it."""
    info = tmp_path / "site" / "words-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: words\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[mmcl.text_towers]\nwords = words_:words\n")
    (tmp_path / "site" / "words_.py").write_text(SOURCE)

    def forget():
        TEXT_TOWERS.__dict__.pop("plugins", None)
        TEXT_TOWERS._loaded.clear()
        sys.modules.pop("words_", None)

    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        forget()
        yield
    forget()


@pytest.fixture
def config(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    text = {"name": "words:6", "args": {"times": 2}, "max_tokens": 24, "tokenizer": {"vocab_size": 40}}
    text |= {"prompts": {"query": "a "}, "head": {"dropout": 0.1}}
    return {
        "method": {"name": "simcse"},
        "data": {"train": {"source": str(tmp_path / "rows.jsonl")}},
        "model": {"dim": 8, "text": text},
        "training": {"epochs": 3, "batch_size": 6, "lr": 1e-2, "precision": "float32", "device": "cpu"},
    }


def test_a_tower_of_another_package_trains_is_saved_and_is_loaded(plug_in, config, tmp_path):
    run = train(config, out=tmp_path / "run", show_progress=False)
    import words_

    assert words_.PRETRAINED == [True]
    encoder = mmcl.load(tmp_path / "run", dtype="float32")
    assert words_.PRETRAINED == [True, False]
    embedder = encoder.embedder("text")
    assert (embedder.tower.width, embedder.processor.max_tokens, embedder.processor.prompts) == (
        12,
        24,
        {"query": "a "},
    )
    texts = ["red dog", "blue", "", "red car on a a and a dog on a hat on a b on a c"]
    vectors = encoder.encode(texts)
    ids, cut = embedder.processor.tokenize(texts)
    assert cut == 1
    table, head = embedder.tower.net.vectors.weight, embedder.head[1].weight
    means = torch.stack([table[torch.from_numpy(row).long()].mean(dim=0) for row in ids])
    np.testing.assert_allclose(vectors, F.normalize(means @ head.T, dim=1).detach(), atol=1e-6)
    opened = run.model  # anew whenever it is asked for
    opened.set_compute("float32")
    np.testing.assert_array_equal(vectors, opened.encode(texts))
    assert mmcl.load(tmp_path / "run", dtype="bfloat16").encode(texts) == pytest.approx(vectors, abs=0.02)
    again = config | {"model": {"name": str(tmp_path / "run"), "text": {"max_tokens": 5, "head": {"dropout": 0.1}}}}
    assert build_method(load_config(again), tmp_path / "next").encoder.text().processor.max_tokens == 5
    refused = [
        cannot_export(encoder.towers, to) for to in ("sentence-transformers", "transformers", "onnx", "open-clip")
    ]
    assert all(refused), refused


def test_a_folder_whose_package_is_gone_says_so(plug_in, config, tmp_path, monkeypatch):
    build = build_method(load_config(config), tmp_path / "run")
    mmcl.encoding.Encoder(build.encoder).save(tmp_path / "model")
    TEXT_TOWERS.__dict__["plugins"] = {}
    with pytest.raises(MmclError, match="text tower 'words:6': no package that is installed has it"):
        mmcl.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.text.args.flat=false"], r"'words:6': its network gives \(1, 8, 12\) for 1 texts, and not a tensor"),
        (
            ["model.text.name=words:many"],
            r"'words:many': words 0\.3 cannot make it \(ValueError: .*; check its name and",
        ),
        (["model.text.pooling=mean"], r"model\.text\.pooling: 'words:6' has a pooling of its own"),
        (["model.text.name=scratch"], r"model\.text\.args: 'scratch' takes none; remove times"),
        (["method.mlm={}"], r"method\.mlm: the text model has no table of word embeddings"),
    ],
)
def test_mistakes_are_named(plug_in, config, tmp_path, changes, message):
    with pytest.raises(MmclError, match=message):
        build_method(load_config(config, changes), tmp_path / "run")
