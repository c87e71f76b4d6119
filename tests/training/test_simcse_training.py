"""Sentences end to end: from rows to a model folder, alone, in pairs, with hard negatives, with scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config.load import load_config
from mmcl.data.identity import mix
from mmcl.formats.folder import save
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method

from .sentence_runs import SENTENCES, TRIPLETS, config_of, draw, feed_of, losses


def test_dropout_pairs_are_learned_from_sentences_alone_and_judged_by_labelled_ones(tmp_path, sentences, caplog):
    caplog.set_level("INFO", "mmcl")
    judged = {"sources": {"dev": {"task": "sts", "source": sentences["sts"]}}, "every": 1, "best": "dev/spearman"}
    run = train(config_of(sentences["alone"], evaluation=judged), out=tmp_path / "run", show_progress=False)
    assert np.mean(losses(run)[-3:]) < 0.7 * losses(run)[0]
    assert "global batch 24, 23 negatives per query" in caplog.text
    assert run.metrics["dev/spearman"] == max(
        line["evaluation"]["dev/spearman"] for line in run.lines() if "evaluation" in line
    )
    assert "dev/spearman" in run.card["scores"]
    vectors = mmcl.load(run.folder, dtype="float32").encode(SENTENCES[:5])
    assert vectors.shape == (5, 32)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(run.folder / "model"), device="cpu").encode(SENTENCES[:5])
    assert np.allclose(theirs / np.linalg.norm(theirs, axis=1, keepdims=True), vectors, atol=1e-5)


def test_triplets_are_learned_and_found_again(tmp_path, sentences, caplog):
    caplog.set_level("INFO", "mmcl")
    judged = {"sources": {"dev": {"source": sentences["triplets"]}}, "best": "dev/anchor_to_positive/hit@1"}
    config = config_of(sentences["triplets"], {"training_head": True}, TRIPLETS, evaluation=judged)
    config["training"] |= {"epochs": 12, "batch_size": 12}
    run = train(config, out=tmp_path / "run", show_progress=False)
    assert np.mean(losses(run)[-3:]) < 0.7 * losses(run)[0]
    assert "23 negatives per query" in caplog.text  # 11 other positives, 12 hard ones
    assert run.metrics["dev/anchor_to_positive/hit@1"] > 0.2
    assert 0 < run.metrics["dev/positive_to_anchor/mrr"] <= 1
    assert list(mmcl.load(run.folder).towers.heads) == ["projector"]


def test_labelled_pairs_are_learned(tmp_path, sentences, caplog):
    caplog.set_level("INFO", "mmcl")
    config = config_of(sentences["labelled"], {"name": "scored_pairs"})
    judged = {"sources": {"dev": {"task": "sts", "source": sentences["sts"]}}}
    run = train(
        config | {"evaluation": judged}, out=tmp_path / "run", overrides=["training.epochs=8"], show_progress=False
    )
    assert np.mean(losses(run)[-3:]) < losses(run)[0]
    assert "labelled pairs" in caplog.text
    assert run.metrics["dev/spearman"] > 0.5


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, sentences, train_until):
    config = load_config(config_of(sentences["alone"], {"training_head": True}), ["training.epochs=1.2"])
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    train_until(7, config, tmp_path / "cut")
    resumed = train(config, out=tmp_path / "cut", resume=True, show_progress=False)
    assert losses(resumed) == losses(uninterrupted)
    for file in ("model", "heads"):
        one, other = (load_file(run.folder / "model" / f"{file}.safetensors") for run in (uninterrupted, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_second_draw_of_a_sentence_is_there_only_where_texts_change(tmp_path, sentences):
    config = config_of(sentences["alone"])
    feed, _ = feed_of(config, tmp_path / "run")
    assert feed.batch(draw(0, 1)).draws == {}
    feed, _ = feed_of(config, tmp_path / "run", "text_augmentation.drop=0.4")
    batch = feed.batch(draw(*range(40)))
    assert len(batch.draws["text"]) == 1
    assert not torch.equal(batch.inputs["text"]["input_ids"], batch.draws["text"][0]["input_ids"])
    again = feed.batch(draw(7)).drawn("text", 1)["input_ids"][0]
    row = batch.drawn("text", 1)
    assert torch.equal(row["input_ids"][7][row["attention_mask"][7] == 1], again)
    still, _ = feed_of(config, tmp_path / "run", "text_augmentation.drop=0.4", augmented=False)
    assert still.batch(draw(0)).draws == {}


def test_texts_of_a_row_are_changed_independently_of_each_other(tmp_path, sentences):
    config = config_of(sentences["triplets"], columns=dict.fromkeys(TRIPLETS, "anchor"))
    feed, _ = feed_of(config, tmp_path / "run", "text_augmentation.drop=0.5")
    anchor, positive, negative = (
        feed.batch(draw(*range(20))).inputs[role]["attention_mask"].sum(1) for role in TRIPLETS
    )
    assert not any(torch.equal(*pair) for pair in ((anchor, positive), (anchor, negative), (positive, negative)))


def test_a_guide_has_features_of_every_text_role(tmp_path, sentences):
    folder = tmp_path / "model"
    save(build_method(load_config(config_of(sentences["alone"])), tmp_path / "g").encoder, folder)
    config = config_of(sentences["triplets"], {"guide": {"name": str(folder)}}, TRIPLETS)
    feed, method = feed_of(config, tmp_path / "run", "text_augmentation.drop=0.5")
    batch = feed.batch(draw(5, 2))
    encoder = mmcl.load(folder, dtype="float32")
    for role in TRIPLETS:
        texts = [feed.sources[0].column(role)[row] for row in (5, 2)]
        vectors = encoder.embedder("text").head(batch.references["guide"][role]["features"])
        expected = encoder.encode(texts, normalize=False)
        assert np.allclose(vectors.detach().numpy(), expected, atol=1e-5)
    assert method.references.keys() == {"guide"}


def test_synonyms_change_words_and_only_changed_texts_are_read_again(tmp_path, sentences):
    words = tmp_path / "synonyms.tsv"
    words.write_text("dog\thound\nhome\thouse\n")
    config = config_of(sentences["alone"], text_augmentation={"swap": 1.0, "synonyms": str(words)})
    feed, method = feed_of(config, tmp_path / "run")
    processor = method.encoder.embedder("text").processor
    batch = feed.batch(draw(*range(8)))
    for place, text in enumerate(SENTENCES[:8]):
        (expected,), _ = processor.tokenize([text.replace("dog", "hound").replace("home", "house")])
        kept = batch.inputs["text"]["attention_mask"][place] == 1
        assert batch.inputs["text"]["input_ids"][place][kept].tolist() == expected.tolist()
    assert torch.equal(batch.seeds, mix(batch.rows, 0, torch.zeros(8, dtype=torch.int64)))


def test_settings_of_what_the_method_does_not_read_are_refused(tmp_path, sentences):
    config = config_of(sentences["alone"], augmentation={"flip": 0.5})
    with pytest.raises(MmclError, match="augmentation: method 'simcse' reads no images; leave it out"):
        build_method(load_config(config), tmp_path)


def test_two_views_that_would_be_the_same_are_refused(tmp_path, sentences):
    config = config_of(sentences["alone"])
    config["model"]["text"]["dropout"] = 0.0
    with pytest.raises(MmclError, match="both views of a text are the same"):
        build_method(load_config(config), tmp_path)
    build_method(load_config(config, ["text_augmentation.drop=0.1"]), tmp_path)
    build_method(load_config(config, ["model.text.head.dropout=0.1"]), tmp_path)
