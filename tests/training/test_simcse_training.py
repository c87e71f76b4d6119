"""Sentences end to end: from rows to a model folder, alone, in pairs, with hard negatives, with scores."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmcl
from mmcl.config.load import load_config
from mmcl.data.batches.feed import open_feed
from mmcl.data.batches.sampler import Draw
from mmcl.data.identity import NOTHING, mix
from mmcl.encoding import Encoder
from mmcl.evaluation import sts
from mmcl.evaluation.evaluator import Setup, open_evaluator
from mmcl.formats.folder import save
from mmcl.losses import Guide, Negatives, info_nce
from mmcl.methods import Step
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method
from mmcl.training.loop import Trainer

ANIMALS, VERBS = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits", "hides")
PLACES = ("here", "at home", "in the wood", "by the sea", "in a field", "on a hill")
SENTENCES = [f"a {animal} {verb} {place}" for animal in ANIMALS for verb in VERBS for place in PLACES]
PROMPTS = {"query": "what is it ", "passage": "so it is "}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sentences(tmp_path):
    """216 of them, as a table for each way of learning, and a labelled one to judge by."""
    pairs = [(f"a {a} {v} here", f"the {a} {v}", f"a {a} never {v}") for a in ANIMALS for v in VERBS]
    score = [{"sentence1": one, "sentence2": other, "score": 5.0} for one, other, _ in pairs]
    score += [{"sentence1": one, "sentence2": other, "score": 1.0} for one, _, other in pairs[::-1]]
    labelled = [{"anchor": r["sentence1"], "positive": r["sentence2"], "score": r["score"]} for r in score]
    return {
        "alone": write(tmp_path / "alone.jsonl", [{"text": text} for text in SENTENCES]),
        "triplets": write(
            tmp_path / "triplets.jsonl",
            [dict(zip(("anchor", "positive", "negative"), row, strict=True)) for row in pairs],
        ),
        "labelled": write(tmp_path / "labelled.jsonl", labelled),
        "sts": write(tmp_path / "sts.jsonl", score),
    }


def config_of(source, method=None, columns=None, **more):
    return {
        "name": "tiny",
        "method": {"name": "simcse"} | (method or {}),
        "data": {"train": {"source": source}, "columns": columns or {}} | more.pop("data", {}),
        "model": {
            "dim": 32,
            "text": {
                "name": "scratch",
                "layers": 1,
                "width": 32,
                "heads": 2,
                "head": {"kind": "none"},
                "tokenizer": {"vocab_size": 80},
            },
        },
        "training": {"epochs": 3, "batch_size": 24, "lr": 3e-3, "log_every": 1, "save_every": 5},
    } | more


TRIPLETS = {"anchor": "anchor", "positive": "positive", "negative": "negative"}


def losses(run):
    return [line["loss"] for line in run.lines() if "loss" in line]


def feed_of(config, folder, *overrides, augmented=True):
    config = load_config(config, overrides)
    method = build_method(config, folder).eval()
    sources = [config.data.train, *config.data.mix]
    return open_feed(sources, method.reading, config, folder, augmented=augmented, device=torch.device("cpu")), method


def draw(*rows, turn=0):
    return Draw(0, np.array(rows), np.full(len(rows), turn))


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


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, sentences):
    config = load_config(config_of(sentences["alone"], {"training_head": True}), ["training.epochs=1.2"])
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    trainer = Trainer(config, tmp_path / "cut", resume=False, show_progress=False)
    step = trainer._step

    def killed(batches, number, rate):
        if number == 7:
            raise KeyboardInterrupt
        return step(batches, number, rate)

    trainer._step = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = train(config, out=tmp_path / "cut", resume=True, show_progress=False)
    assert losses(resumed) == losses(uninterrupted)
    for file in ("model", "heads"):
        one, other = (load_file(run.folder / "model" / f"{file}.safetensors") for run in (uninterrupted, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


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


def prompted(config, **prompts):
    config["model"]["text"]["prompts"] = PROMPTS
    config["data"]["prompts"] = prompts
    return config


def test_each_side_is_read_behind_its_prompt_in_learning_and_judging(tmp_path, sentences):
    config = prompted(config_of(sentences["triplets"], columns=TRIPLETS), anchor="query", positive="passage")
    feed, method = feed_of(config, tmp_path / "run")
    processor = method.encoder.embedder("text").processor
    inputs = feed.batch(draw(3)).inputs
    rows = {role: feed.sources[0].column(role)[3] for role in TRIPLETS}
    for role, prompt in (("anchor", "query"), ("positive", "passage"), ("negative", None)):
        (expected,), _ = processor.tokenize([rows[role]], prompt)
        assert inputs[role]["input_ids"][0].tolist() == expected.tolist()
    assert feed.batch(draw(3)).ids[0].tolist() == processor.identities(list(rows.values())).tolist(), (
        "not of the prompts"
    )
    changed, _ = feed_of(config, tmp_path / "run", "text_augmentation.drop=0.7")
    (bare,), _ = processor.tokenize([""], "query")
    for turn in range(5):
        kept = changed.batch(draw(3, turn=turn)).inputs["anchor"]["input_ids"][0].tolist()
        assert kept[: len(bare) - 1] == bare[:-1].tolist(), "a prompt stays whole"
    with pytest.raises(MmclError, match=r"data\.prompts\.anchor: the model has no prompt 'qery'; did you mean 'query'"):
        feed_of(prompted(config, anchor="qery"), tmp_path / "run")


@pytest.mark.parametrize(
    ("table", "columns", "prompts", "read"),
    [
        ("alone", None, {"text": "query"}, "query"),
        ("triplets", TRIPLETS, {"anchor": "query", "positive": "passage"}, "query"),
        ("triplets", TRIPLETS, {"positive": "passage"}, None),
    ],
)
def test_both_sentences_are_judged_behind_the_prompt_of_text_or_anchor(
    tmp_path, sentences, table, columns, prompts, read, monkeypatch
):
    monkeypatch.setattr("mmcl.runtime.device.multiplies_bfloat16", lambda device: False)
    values = prompted(config_of(sentences[table], columns=columns), **prompts)
    config = load_config(values | {"evaluation": {"sources": {"dev": {"task": "sts", "source": sentences["sts"]}}}})
    encoder = Encoder(build_method(config, tmp_path / "run").encoder.eval())
    source = config.evaluation.sources["dev"]
    evaluator = open_evaluator(source, Setup("dev", encoder.towers, config, tmp_path, torch.device("cpu")))
    expected = {name: sts(encoder, sentences["sts"], prompt=name, bootstrap=0).metrics["pearson"] for name in PROMPTS}
    expected[None] = sts(encoder, sentences["sts"], bootstrap=0).metrics["pearson"]
    assert evaluator.evaluate(encoder.towers)["pearson"] == pytest.approx(expected[read], abs=1e-6)
    assert len({round(value, 5) for value in expected.values()}) == 3


def test_judging_on_rows_that_are_learned_from_is_warned_of(tmp_path, sentences, caplog):
    rows = [json.loads(line) for line in Path(sentences["triplets"]).read_text().splitlines()]
    crossed = [row | {"positive": other["positive"]} for row, other in zip(rows[:9], rows[9:18], strict=True)]
    mixed = write(tmp_path / "mixed.jsonl", [*rows[:3], *crossed])
    other = write(tmp_path / "crossed.jsonl", crossed)
    sources = {"same": sentences["triplets"], "mixed": mixed, "crossed": other}
    more = {"evaluation": {"sources": {name: {"source": path} for name, path in sources.items()}}}
    Trainer(load_config(config_of(sentences["triplets"], columns=TRIPLETS) | more), tmp_path / "run", resume=False)
    assert "evaluation.sources.same: 36 of 36 rows" in caplog.text
    assert "evaluation.sources.mixed: 3 of 12 rows" in caplog.text
    assert "evaluation.sources.crossed" not in caplog.text, "a sentence of a pair may come again in another"


def test_a_search_in_training_leaves_queries_out_of_their_own_ranking_as_the_source_says(tmp_path, sentences, caplog):
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"a{number}", "text": text}) for number, text in enumerate(SENTENCES[:12])]
    (beir / "corpus.jsonl").write_text("\n".join(lines))
    (beir / "queries.jsonl").write_text("\n".join(lines))
    (beir / "qrels" / "test.tsv").write_text("\n".join(f"a{n}\ta{n ^ 1}\t1" for n in range(12)))
    config = config_of(sentences["triplets"], columns=TRIPLETS)
    found = {}
    for rule in (None, "drop", "keep"):
        source = {"source": str(beir)} | ({"self_matches": rule} if rule else {})
        parsed = load_config(config | {"evaluation": {"sources": {"dev": source}}})
        encoder = build_method(parsed, tmp_path / "run").encoder.eval()
        with caplog.at_level("INFO", logger="mmcl"):
            evaluator = open_evaluator(
                parsed.evaluation.sources["dev"], Setup("dev", encoder, parsed, tmp_path, torch.device("cpu"))
            )
        found[rule] = evaluator.evaluate(encoder)["query_to_document/mrr"]
    assert found["keep"] < found["drop"] == found[None]
    assert "12 of 12 queries stand in the corpus under their own id: each is left out" in caplog.text
    assert "each is ranked as its own answer" in caplog.text
    with pytest.raises(MmclError, match=r"unknown key 'evaluation\.sources\.dev\.self_matches'"):
        load_config(
            config | {"evaluation": {"sources": {"dev": {"source": "x", "task": "sts", "self_matches": "drop"}}}}
        )


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


def test_the_tasks_named_judge_and_no_others(tmp_path, sentences):
    rows = [json.loads(line) for line in Path(sentences["sts"]).read_text().splitlines()]
    tasks = ("one", "other", "third")
    table = write(tmp_path / "tasks.jsonl", [row | {"task": tasks[n % 3]} for n, row in enumerate(rows)])
    source = {"task": "sts", "source": table, "tasks": ["one", "third"]}
    config = config_of(sentences["alone"], evaluation={"sources": {"dev": source}, "best": "dev/third/spearman"})
    run = train(load_config(config, ["training.epochs=0.2"]), out=tmp_path / "run")
    by = ("spearman", "pearson")
    assert set(run.metrics) == {*(f"dev/{of}{name}" for of in ("", "one/", "third/") for name in by)}
    with pytest.raises(MmclError, match=r"unknown key 'evaluation\.sources\.dev\.tasks'"):
        load_config(config, ["evaluation.sources.dev.task=retrieval"])


def test_a_way_that_is_not_searched_is_no_metric_to_choose_by(tmp_path, sentences):
    config = config_of(sentences["triplets"], columns=TRIPLETS) | {
        "evaluation": {"sources": {"dev": {"source": sentences["triplets"]}}, "best": "dev/image_to_text/hit@1"}
    }
    with pytest.raises(MmclError, match=r"evaluation.best: 'dev/image_to_text/hit@1' will not be measured: dev is"):
        train(load_config(config), out=tmp_path / "run")


def test_an_undefined_correlation_is_warned_of_and_never_the_best(tmp_path, sentences, caplog):
    rows = [json.loads(line) | {"score": 3.0} for line in Path(sentences["sts"]).read_text().splitlines()]
    source = {"task": "sts", "source": write(tmp_path / "constant.jsonl", rows)}
    evaluation = {"sources": {"dev": source}, "best": "dev/spearman", "every": 0.2}
    config = load_config(config_of(sentences["alone"], evaluation=evaluation), ["training.epochs=1"])
    run = train(config, out=tmp_path / "run")
    assert "no spearman, pearson" in caplog.text
    assert run.card["training"]["step"] == run.card["training"]["steps"]  # the last one, as without a metric
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_two_views_that_would_be_the_same_are_refused(tmp_path, sentences):
    config = config_of(sentences["alone"])
    config["model"]["text"]["dropout"] = 0.0
    with pytest.raises(MmclError, match="both views of a text are the same"):
        build_method(load_config(config), tmp_path)
    build_method(load_config(config, ["text_augmentation.drop=0.1"]), tmp_path)
    build_method(load_config(config, ["model.text.head.dropout=0.1"]), tmp_path)
