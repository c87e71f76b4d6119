"""Rows of sentences: what a row may lack, which texts are the same, and sources of several kinds."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmcl.data.identity import NOTHING
from mmcl.losses import Guide, Negatives, info_nce
from mmcl.methods import Step
from mmcl.runtime.errors import MmclError

from .sentence_runs import SENTENCES, TRIPLETS, config_of, draw, feed_of, prompted, write


def test_columns_that_cannot_be_used_are_counted_and_nothing_else_is_lost(tmp_path, caplog):
    odd = [None, "", "  \t\n", "word " * 20_000, "a \ufffd\x00 and \ue000", "👍🏽" * 40, "plain"]
    rows = [{"text": text} for text in odd] + [{"text": text} for text in SENTENCES[:10]]
    config = config_of(write(tmp_path / "odd.jsonl", rows))
    feed, method = feed_of(config, tmp_path / "run")
    assert [problem["reason"] for problem in feed.problems()] == ["no text"] * 3
    assert feed.positions.tolist() == list(range(3, 17))
    limit = method.encoder.embedder("text").processor.max_tokens
    cut = f"1 of 14 texts in column 'text' are longer than {limit} tokens and are cut there; model.text.max_tokens"
    assert cut in caplog.text
    feed_of(config, tmp_path / "run")
    assert caplog.text.count(cut) == 2, "whoever tokenized them"
    batch = feed.batch(draw(*range(3, 17)))
    assert torch.isfinite(method.outputs(batch).embeddings["anchor"]).all()
    with pytest.raises(MmclError, match=r"row 0 has no text in column 'text' \(3 rows in all\)"):
        feed_of(config, tmp_path / "strict", "data.on_error=fail")


def test_half_a_surrogate_pair_in_a_file_is_named_by_its_line(tmp_path):
    path = write(tmp_path / "half.jsonl", [{"text": "whole 👍"}, {"text": "half \ud83d"}])
    with pytest.raises(MmclError, match=r"line 2 of half\.jsonl has half of a surrogate pair"):
        feed_of(config_of(path), tmp_path / "run")


def test_a_row_lacks_any_of_its_roles_and_numbers_are_checked(tmp_path):
    rows = [{"anchor": f"one {n}", "positive": f"two {n}", "score": n} for n in range(8)]
    rows[1]["score"], rows[2]["anchor"], rows[3]["positive"] = None, None, " "
    path = write(tmp_path / "rows.jsonl", rows)
    feed, method = feed_of(config_of(path, {"name": "scored_pairs"}), tmp_path / "run")
    assert [(p["id"], p["role"], p["reason"]) for p in feed.problems()] == [
        ("1", "score", "no number"),
        ("2", "anchor", "no text"),
        ("3", "positive", "no text"),
    ]
    batch = feed.batch(draw(0, 5, 7))
    assert batch.inputs["score"]["values"].tolist() == [0.0, 5.0, 7.0]
    assert batch.inputs["score"]["values"].dtype == torch.float32
    processor = method.encoder.embedder("text").processor
    assert batch.ids.tolist() == [processor.identities([f"one {n}", f"two {n}"]).tolist() for n in (0, 5, 7)]


def test_texts_of_equal_tokens_are_the_same_thing_in_training(tmp_path):
    """Masks, distinct batches and mining all go by these identities."""
    rows = [{"anchor": "what is paris", "positive": f"answer {n}"} for n in range(8)]
    rows += [{"anchor": "What is Paris ", "positive": "ANSWER 1"}, {"anchor": "paris", "positive": " paris"}]
    config = config_of(write(tmp_path / "rows.jsonl", rows), columns={"anchor": "anchor", "positive": "positive"})
    config = prompted(config, anchor="query")
    config["model"]["text"]["tokenizer"] = {"vocab_size": 80, "lowercase": True}
    feed, _ = feed_of(config, tmp_path / "run", "training.batch_size=2", "data.distinct=false")
    ids = feed.batch(draw(*range(10))).ids
    assert len(set(ids[:9, 0].tolist())) == 1
    assert ids[8, 1] == ids[1, 1]
    assert ids[9, 0] == ids[9, 1], "whatever the prompt"
    assert len(set(ids[:8, 1].tolist())) == 8
    assert len(feed.distinct("positive")[0]) == 9
    distinct, _ = feed_of(config, tmp_path / "run", "training.batch_size=2", "data.distinct=true")
    for batch in distinct.batches(0, len(distinct)):
        assert len(batch.ids[:, 0].unique()) == len(batch.ids)


def test_passages_of_tevatron_are_title_and_text(tmp_path):
    passages = [{"docid": "1", "title": "a cat", "text": "sleeps"}, {"docid": "2", "title": "", "text": "a dog runs"}]
    rows = [{"query_id": str(n), "query": f"what {n}", "positive_passages": passages} for n in range(4)]
    rows = [row | {"negative_passages": passages[:n] if n else []} for n, row in enumerate(rows)]
    columns = {"anchor": "query", "positive": "positive_passages", "negative": "negative_passages"}
    feed, method = feed_of(config_of(write(tmp_path / "t.jsonl", rows), columns=columns), tmp_path / "run")
    processor = method.encoder.embedder("text").processor
    items, owner = feed.columns["positive"].items(np.array([1]))
    assert owner.tolist() == [0, 0]
    assert (
        feed.columns["positive"].hashes[items].tolist() == processor.identities(["a cat sleeps", "a dog runs"]).tolist()
    )
    assert len(feed.positions) == 4


def test_a_mixed_source_may_have_no_column_of_hard_negatives(tmp_path):
    pairs = [{"anchor": f"ask {n}", "positive": f"yes {n}"} for n in range(6)]
    with_hard = write(tmp_path / "with.jsonl", [row | {"negative": f"no {n}"} for n, row in enumerate(pairs)])
    without = write(tmp_path / "without.jsonl", [{name: f"{text}!" for name, text in row.items()} for row in pairs])
    config = config_of(without, columns=TRIPLETS, data={"mix": [{"source": with_hard}]})
    feed, method = feed_of(config, tmp_path / "run", "training.batch_size=12")
    batch = next(iter(feed.batches(0, 1)))
    assert ((batch.ids[:, 2] == NOTHING) == (batch.rows < 6)).all()
    assert method.outputs(batch).embeddings["negative"].isfinite().all()
    config["data"]["mix"] = [{"source": with_hard, "columns": {"negative": "negativ"}}]
    with pytest.raises(MmclError, match=r"without.jsonl: no column 'negative'.* data\.columns\.negative"):
        feed_of(config, tmp_path / "other")


def test_hard_negatives_that_no_row_has_are_an_error_that_names_the_column(tmp_path):
    rows = [{"anchor": f"ask {n}", "positive": f"yes {n}", "negative": [[], None][n % 2]} for n in range(24)]
    with pytest.raises(MmclError, match=r"none of the 24 rows has a text in column 'negative'; leave negative out of"):
        feed_of(config_of(write(tmp_path / "rows.jsonl", rows), columns=TRIPLETS), tmp_path / "run")


def test_a_stream_without_hard_negatives_says_so(tmp_path, caplog):
    shards = {}
    for name, hard in (("with", True), ("without", False)):
        shards[name] = str(tmp_path / f"{name}-000000.tar")
        with tarfile.open(shards[name], "w") as tar:
            for n in range(12):
                row = {"anchor": f"ask {n}", "positive": f"yes {n}"} | ({"negative": f"no {n}"} if hard else {})
                info = tarfile.TarInfo(f"{name}{n}.json")
                info.size = len(json.dumps(row))
                tar.addfile(info, io.BytesIO(json.dumps(row).encode()))
    columns = {role: f"json.{role}" for role in TRIPLETS}
    config = config_of(shards["without"], columns=columns, data={"mix": [{"source": shards["with"]}]})
    with caplog.at_level("INFO", logger="mmcl"):
        feed_of(config, tmp_path / "run")
    assert "12 of the first 24 samples have no negative, and are used without" in caplog.text
    config = config_of(shards["without"], columns=columns)
    with pytest.raises(MmclError, match=r"^\S*without-000000.tar:without0: no json.negative; the sample has json"):
        feed_of(config, tmp_path / "other")
    config["model"]["text"]["tokenizer"] = {"name": str(tmp_path / "run" / "tokenizer")}
    with caplog.at_level("WARNING", logger="mmcl"):
        feed_of(config, tmp_path / "other")
    assert "none of the first 12 samples has a text in json.negative" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_pair_without_a_hard_negative_is_learned_from_without(tmp_path, caplog, kind, guided):
    """The loss is InfoNCE among the negatives that there are; none is made up, and lists are as long as they like."""
    negatives = [["no 0", "never 0"], [], None, ["no 3"], ["no 4", "never 4", "nowhere 4"], []]
    positives = [["yes 0"], ["yes 1", "sure 1"], ["yes 2"], ["yes 3", "sure 3", "true 3"], ["yes 4"], ["yes 5"]]
    rows = [
        {"anchor": f"ask {n}", "pos": pos, "neg": neg}
        for n, (pos, neg) in enumerate(zip(positives, negatives, strict=True))
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    if kind == "tar":
        source = str(tmp_path / "rows-000000.tar")
        with tarfile.open(source, "w") as tar:
            for n, row in enumerate(rows):
                content = json.dumps(row).encode()
                info = tarfile.TarInfo(f"{n}.json")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    prefix = "json." if kind == "tar" else ""
    columns = {"anchor": f"{prefix}anchor", "positive": f"{prefix}pos", "negative": f"{prefix}neg"}
    config = config_of(source, {"hard_negative_weight": 2.0}, columns=columns)
    config["model"]["text"]["dropout"] = 0.0
    with caplog.at_level("INFO", logger="mmcl"):
        feed, method = feed_of(config, tmp_path / "run", "training.batch_size=6", "data.on_error=fail")
    assert feed.problems() == []
    if kind == "jsonl":
        assert "3 of 6 rows have no negative, and are used without" in caplog.text
    batch = next(iter(feed.batches(0, 1)))
    outputs = method.outputs(batch)
    views = outputs.embeddings
    there = batch.ids[:, 2] != NOTHING
    assert there.sum() == 3
    if guided:
        method.config = method.config.model_copy(update={"guide": SimpleNamespace(margin=0.0)})
        guides = {role: views[role].detach() for role in ("anchor", "positive", "negative")}
        outputs = replace(outputs, rows=replace(outputs.rows, references={"guide": guides}))
    guide = Guide(views["anchor"], views["positive"], views["negative"][there], 0.0) if guided else None
    expected = info_nce(
        views["anchor"],
        views["positive"],
        method.temperature,
        negatives=Negatives(views["negative"][there], owner=torch.arange(6)[there], weight=2.0),
        guide=guide,
        symmetric=method.config.symmetric,
    )
    torch.testing.assert_close(method.loss(outputs, Step(0, 1)).value, expected)


def test_a_source_may_have_columns_and_prompts_of_its_own(tmp_path, sentences):
    other = write(tmp_path / "other.jsonl", [{"q": f"question {n}", "a": f"answer {n}"} for n in range(30)])
    mix_ = [{"source": other, "columns": {"anchor": "q", "positive": "a"}, "prompts": {"positive": "query"}}]
    columns = {"anchor": "anchor", "positive": "positive"}
    config = prompted(config_of(sentences["triplets"], columns=columns), positive="passage")
    config["data"] |= {"mix": mix_, "batches": "one_source", "distinct": True}
    feed, method = feed_of(config, tmp_path / "run", "training.batch_size=6")
    processor = method.encoder.embedder("text").processor
    both = feed.batch(draw(0, 40)).inputs["positive"]
    for place, (text, prompt) in enumerate(((feed.sources[0].column("positive")[0], "passage"), ("answer 4", "query"))):
        (expected,), _ = processor.tokenize([text], prompt)
        assert both["input_ids"][place, : len(expected)].tolist() == expected.tolist()
    for batch in feed.batches(0, len(feed)):
        assert len({row >= 36 for row in batch.rows.tolist()}) == 1
        assert len(batch.ids.unique()) == batch.ids.numel()
