"""Runs on sentences are judged by correlation and by search, behind the prompts that they learn with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmcl.config.load import load_config
from mmcl.encoding import Encoder
from mmcl.evaluation import sts
from mmcl.evaluation.evaluator import Setup, open_evaluator
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method
from mmcl.training.loop import Trainer

from .sentence_runs import PROMPTS, SENTENCES, TRIPLETS, config_of, draw, feed_of, prompted, write


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
