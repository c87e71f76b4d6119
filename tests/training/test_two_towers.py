"""Two towers of texts that share nothing: questions and their answers under clip's loss."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from mmcl import load, train
from mmcl.config.load import load_config
from mmcl.data.batches.batch import Batch
from mmcl.encoding import Encoder
from mmcl.runtime.errors import MmclError
from mmcl.training.build import build_method

ANIMALS, PLACES = ("dog", "cat", "cow", "hen", "fox", "owl"), ("barn", "house", "wood", "field")
TEXT = {"modality": "text", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 60}}


@pytest.fixture
def config(tmp_path):
    rows = [
        {"q": f"where does the {animal} of the {place} sleep", "a": f"in the {place} the {animal} does"}
        for animal in ANIMALS
        for place in PLACES
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(path)}
    return {
        "name": "faq",
        "method": {"name": "clip"},
        "data": {"train": source, "columns": {"question": "q", "answer": "a"}},
        "model": {"dim": 12, "towers": {"question": TEXT, "answer": TEXT | {"width": 24}}},
        "training": {"epochs": 25, "batch_size": 12, "lr": 1e-2, "log_every": 5, "device": "cpu"},
        "evaluation": {"sources": {"same": source}},
    }


def test_trains_saves_loads_and_encodes_by_the_name_of_a_tower(tmp_path, config):
    # In bfloat16 near ties may change places between batches of other shapes.
    run = train(config, out=tmp_path / "run", overrides=["training.precision=float32"], show_progress=False)
    scores = run.metrics
    assert scores["same/question_to_answer/hit@1"] > 0.5
    encoder = load(tmp_path / "run", dtype="float32")
    assert encoder.towers.names == ["answer", "question"]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    questions = encoder.encode([row["q"] for row in rows], modality="question")
    answers = encoder.encode([row["a"] for row in rows], modality="answer")
    hits = (questions @ answers.T).argmax(1) == np.arange(len(rows))
    assert hits.mean() == pytest.approx(scores["same/question_to_answer/hit@1"])
    with pytest.raises(MmclError, match="several text towers"):
        encoder.encode("where does the dog sleep", modality="text")


def test_images_of_both_towers_are_changed_independently_of_each_other(tmp_path, config):
    image = {"modality": "image", "name": "cifar:resnet10", "args": {"width": 8}}
    config["model"]["towers"] = {"question": image, "answer": image}
    config |= {"data": config["data"] | {"image": {"size": 16}}, "augmentation": {"crop_scale": [0.3, 0.6]}}
    method = build_method(load_config(config), tmp_path / "run").train()
    pixels, rows = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8), torch.arange(6)
    batch = Batch({side: {"pixels": pixels} for side in ("question", "answer")}, rows[:, None], rows, rows)
    one, other = (of["pixels"] for of in method.view_inputs(batch).values())
    assert not torch.isclose(one, other).flatten(1).all(dim=1).any()


@pytest.fixture
def alone(tmp_path, config):
    """The folder of a model with one tower, of texts."""
    text = {key: value for key, value in TEXT.items() if key != "modality"}
    changes = {"method": {"name": "simcse"}, "model": {"dim": 12, "text": text}, "evaluation": {}}
    changes["data"] = {"train": config["data"]["train"], "columns": {"anchor": "q", "positive": "a"}}
    changes["training"] = config["training"] | {"epochs": 1}
    return str(train(config | changes, out=tmp_path / "alone", show_progress=False).folder)


def parameters(towers, name):
    return torch.cat([p.detach().flatten() for p in towers.embedder(name).parameters()])


def test_two_towers_start_from_one_model_and_part(tmp_path, config, alone):
    named = {"question": {"modality": "text"}, "answer": {"modality": "text"}}
    config |= {"model": {"name": alone, "towers": named}}
    start = parameters(load(alone).towers, "text")
    towers = build_method(load_config(config), tmp_path / "run").encoder
    assert list(towers.embedders) == ["question", "answer"]
    assert all(torch.equal(parameters(towers, name), start) for name in named)
    assert towers.embedder("question").tower.net is not towers.embedder("answer").tower.net
    assert towers.logit_scale == load(alone).logit_scale
    run = train(config, out=tmp_path / "run", overrides=["training.epochs=1"], show_progress=False)
    learned = [parameters(load(run.folder).towers, name) for name in named]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations([*learned, start], 2))
    frozen = {
        "question": {"modality": "text"},
        "answer": {"modality": "text", "frozen": True, "head": {"dropout": 0.5}},
    }
    config["model"] = {"name": str(run.folder), "towers": frozen}
    towers = build_method(load_config(config), tmp_path / "next").encoder
    assert [torch.equal(parameters(towers, name), before) for name, before in zip(named, learned, strict=True)] == [
        True
    ] * 2
    assert [towers.embedder(name).frozen for name in named] == [False, True]
    assert [towers.embedder(name).head[0].p for name in named] == [0.0, 0.5]


def test_what_a_section_changes_is_of_its_tower_alone(tmp_path, config, alone):
    first = {"modality": "text", "frozen": True, "max_tokens": 5, "prompts": {"query": "q: "}, "head": {"dropout": 0.5}}
    config["model"] = {"name": alone, "towers": {"question": first, "answer": {"modality": "text"}}}
    embedder = build_method(load_config(config), tmp_path / "run").encoder.embedder("answer")
    assert all(p.requires_grad for name, p in embedder.named_parameters() if "pooler" not in name)
    assert (embedder.frozen, embedder.processor.prompts, embedder.head[0].p) == (False, {}, 0.0)
    assert embedder.processor.max_tokens > 5


def test_towers_that_a_model_cannot_start_are_named(tmp_path, config, alone):
    def build(model):
        return build_method(load_config(config | {"model": model}), tmp_path / "run")

    named = {"question": {"modality": "text"}, "answer": {"modality": "text", "width": 32}}
    with pytest.raises(MmclError, match=r"model\.towers\.answer\.width: '.*' is a model and has its own"):
        build({"name": alone, "towers": named})
    named["answer"] = {"modality": "image"}
    with pytest.raises(MmclError, match="embeds text only, and cannot take image input"):
        build({"name": alone, "towers": named})
    both = build({"dim": 12, "towers": {"question": TEXT, "answer": TEXT}}).encoder
    Encoder(both).save(tmp_path / "both")
    config["data"] = config["data"] | {"columns": {"query": "q", "passage": "a"}}
    with pytest.raises(MmclError, match=r"model\.towers\.query: .* several text towers; call it answer or question"):
        build({"name": str(tmp_path / "both"), "towers": {name: {"modality": "text"} for name in ("query", "passage")}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["method=simcse", "data.columns={}"],
            r"model\.towers\.question: method 'simcse' has no towers of",
        ),
        (["data.columns.text=q"], r"data\.columns\.text: method 'clip' has no such role"),
        (["model.text={}"], "towers: they stand in the place of text; leave one of the two out"),
        (
            ["model.towers.answer.modality=sound"],
            r"'model\.towers\.answer' is .*: settings with modality: text, image or table",
        ),
        (["model.towers.answer.widht=3"], r"unknown key 'model\.towers\.answer\.widht'; did you mean 'width'"),
        (["model.towers.answer.args={x: 1}"], r"^model\.towers\.answer\.args: 'scratch' takes none; remove x"),
        (["data.columns.question=nowhere"], "no column 'nowhere'.*data.columns.question"),
    ],
)
def test_mistakes_are_named(tmp_path, config, changes, message):
    with pytest.raises(MmclError, match=message):
        build_method(load_config(config, changes), tmp_path / "run")
