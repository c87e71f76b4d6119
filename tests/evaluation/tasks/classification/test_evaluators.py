"""Classification as a run judges by it, and as its report shows it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcl import evaluation, train
from mmcl.config.load import load_config
from mmcl.data.sources import open_source
from mmcl.evaluation.tasks.classification.of_rows import embed_labelled
from mmcl.reports import write_run_report
from mmcl.reports.judged import judge_run
from mmcl.runtime.errors import MmclError

COLOURS = {"red": (220, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 220)}
RESNET = {"channels": [8, 8, 8, 8], "stem_width": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Tables of noisy colours with their names: 48 rows to learn from, 30 to judge on, one of which has no label."""
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for part, count in (("train", 48), ("dev", 30)):
        lines = []
        for number in range(count):
            name = list(COLOURS)[number % 3]
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}{number}.png")
            lines.append({"image": f"{part}{number}.png", "label": None if (part, number) == ("dev", 7) else name})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config_of(images, **source):
    return {
        "name": "simclr",
        "method": {"name": "simclr", "projector": {"hidden": [16], "dim": 8}},
        "data": {"train": {"source": str(images / "train.jsonl")}, "image": {"size": 16}},
        "model": {"dim": 8, "image": {"name": "timm:resnet10t", "args": RESNET, "head": {"kind": "none"}}},
        "augmentation": {"crop_scale": [0.4, 1.0], "flip": 0.5},
        "training": {
            "epochs": 2, "batch_size": 12, "lr": 1e-3, "log_every": 1, "precision": "float32", "device": "cpu",
        },
        "evaluation": {
            "sources": {"dev": {"source": str(images / "dev.jsonl"), "task": "knn", "k": 9, **source}}, "every": 1,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    config = config_of(images)
    config["evaluation"]["best"] = "dev/top@1"
    return train(config, out=tmp_path_factory.mktemp("runs") / "run")


def test_the_numbers_of_a_run_are_those_of_its_model(run, images):
    learned, judged = (embed_labelled(run.model, open_source(images / f"{part}.jsonl")) for part in ("train", "dev"))
    scores = evaluation.knn(learned.vectors, learned.labels, judged.vectors, judged.labels, k=9)
    assert scores.images == 29
    assert run.metrics["dev/top@1"] == pytest.approx(scores.top1)
    assert run.metrics["dev/mean_per_class"] == pytest.approx(scores.metrics["mean_per_class"])
    assert run.metrics["dev/space/image/effective_rank"] > 1
    assert "start" in run.lines()[0]
    assert run.card["scores"]["dev/top@1"] == run.metrics["dev/top@1"]


def test_a_linear_probe_judges_on_features_that_are_not_normalised(images, tmp_path):
    source = {"source": str(images / "dev.jsonl"), "task": "linear_probe", "l2": 0.01}
    config = config_of(images)
    config["evaluation"] = {"sources": {"dev": source}, "best": "dev/top@1"}
    run = train(config, out=tmp_path / "run")
    learned, judged = (
        embed_labelled(run.model, open_source(images / f"{part}.jsonl"), normalize=False) for part in ("train", "dev")
    )
    scores = evaluation.linear_probe(learned.vectors, learned.labels, judged.vectors, judged.labels, l2=0.01)
    assert np.ptp(np.linalg.norm(judged.vectors, axis=1)) > 0
    assert run.metrics["dev/top@1"] == pytest.approx(scores.top1)


def test_few_labels_judge_as_the_function_does(images, tmp_path):
    config = config_of(images)
    source = {"source": str(images / "dev.jsonl"), "task": "few_shot", "fraction": 0.2, "seeds": 2}
    config["evaluation"] = {"sources": {"dev": source}, "best": "dev/top@1"}
    run = train(config, out=tmp_path / "run")
    scores = judge_run(run).scores["dev"][""]
    assert (scores.train, len(scores.draws), scores.images) == (9, 2, 29)
    assert run.metrics["dev/top@1"] == pytest.approx(scores.top1)
    assert scores.chance() == {"top@1": pytest.approx(1 / 3)}


def test_the_report_has_intervals_and_chance(run):
    scores = judge_run(run).scores["dev"][""]
    assert scores.metrics["top@1"] == pytest.approx(run.metrics["dev/top@1"])
    assert scores.intervals["top@1"][0] <= scores.metrics["top@1"] <= scores.intervals["top@1"][1]
    assert scores.chance()["top@1"] == pytest.approx(1 / 3)
    write_run_report(run)
    assert "top@1" in (run.folder / "report.html").read_text()


def test_best_and_last_are_both_in_the_card_by_their_names(run, images):
    values = {line["step"]: line["evaluation"]["dev/top@1"] for line in run.lines() if "evaluation" in line}
    chosen = run.card["chosen"]
    assert chosen["by"] == f"dev/top@1, on {images / 'dev.jsonl'}"
    assert (chosen["best"], chosen["best step"]) == (max(values.values()), run.card["training"]["step"])
    assert (chosen["last"], chosen["last step"]) == (values[8], 8)
    assert "| last step | 8 |" in (run.folder / "model" / "README.md").read_text()


def test_a_model_chosen_on_test_rows_is_warned_of(images, tmp_path, caplog):
    (images / "my-test.jsonl").write_bytes((images / "dev.jsonl").read_bytes())
    config = config_of(images, source=str(images / "my-test.jsonl"))
    config["training"]["epochs"] = 0.25
    config["evaluation"]["best"] = "dev/top@1"
    train(config, out=tmp_path / "run")
    assert "choose by validation rows" in caplog.text


def test_rows_without_a_label_are_listed(run):
    assert "no label" in (run.folder / "skipped.jsonl").read_text()


def test_rows_of_the_training_are_warned_of(images, tmp_path, caplog):
    config = config_of(images, source=str(images / "train.jsonl"))
    config["training"]["epochs"] = 0.25
    train(config, out=tmp_path / "run")
    assert "the images of 48 of 48 rows" in caplog.text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"columns": {"label": "kind"}}, "no column 'kind'.*evaluation.sources.dev.*columns.label"),
        ({"train": {"source": "shards-{0..3}.tar"}}, "evaluation.sources.dev.train: .* not from a stream"),
        ({"train": {"source": "nowhere.csv"}}, "evaluation.sources.dev.train.source: nowhere.csv"),
        ({"k": 0}, "k"),
    ],
)
def test_mistakes_are_named(images, tmp_path, source, message):
    with pytest.raises(MmclError, match=message):
        train(config_of(images, **source), out=tmp_path / "run")


def test_each_image_of_a_list_is_judged_by_the_label_of_its_row(images, tmp_path, caplog):
    """Against tables with a row for each of the images."""
    sources, labelled = {}, {}
    for part in ("train", "dev"):
        rows = open_source(images / f"{part}.jsonl")
        encoded, labels = [path.read_bytes() for path in rows.images("image", range(len(rows)))], rows.labels("label")
        # Of each label one image in its first row, two in the next, and so on; the lists of all labels in turn.
        lists = [
            {"image": [encoded[place] for place in places], "label": name}
            for take in range(4)
            for name in COLOURS
            if (places := [place for place, label in enumerate(labels) if label == name][take * take : (take + 1) ** 2])
        ]
        sources[part] = str(tmp_path / f"{part}.parquet")
        pq.write_table(pa.Table.from_pylist(lists), sources[part])
        labelled[part] = open_source(sources[part]).exploded("image")[0]
    config = config_of(images, source=sources["dev"], train={"source": sources["train"]})
    config["data"]["train"]["source"] = sources["train"]
    config["training"]["epochs"] = 1
    config["evaluation"]["sources"]["again"] = {"source": sources["train"], "task": "knn"}
    run = train(config, out=tmp_path / "run")
    learned, judged = (embed_labelled(run.model, rows) for rows in labelled.values())
    scores = evaluation.knn(learned.vectors, learned.labels, judged.vectors, judged.labels, k=9)
    assert scores.images > len(open_source(sources["dev"]))
    assert run.metrics["dev/top@1"] == pytest.approx(scores.top1)
    assert "the images of 12 of 12 rows" in caplog.text


def test_a_best_that_was_never_measured_is_warned_of(images, tmp_path, caplog):
    source = {"source": str(images / "dev.jsonl"), "task": "linear_probe", "l2": 0.01}
    config = config_of(images)
    config["training"]["epochs"] = 0.25
    config["evaluation"] = {"sources": {"dev": source}, "best": "dev/top@5"}  # of three classes
    train(config, out=tmp_path / "run")
    assert "no evaluation measured dev/top@5, and the model is that of the last step, 1" in caplog.text


def test_the_best_is_chosen_by_what_is_measured(images):
    config = config_of(images)
    config["evaluation"]["best"] = "dev/top@5"
    with pytest.raises(MmclError, match="no metric 'dev/top@5' will be measured; did you mean 'dev/top@1'"):
        load_config(config)
