"""Hard negatives mined in a run: the right ones, in the right batches, again after a resume and on two processes."""

from __future__ import annotations

import json
import logging
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mmcl
from mmcl.config.load import load_config, to_yaml
from mmcl.data.batches.batch import MINED
from mmcl.encoding import Encoder
from mmcl.methods.step import Step
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method
from mmcl.training.callbacks.mining import Miner
from mmcl.training.checkpoint import load_checkpoint
from mmcl.training.logs import MetricsLog
from mmcl.training.loop import Trainer
from mmcl.training.optimization.auto_micro_batch import longest_batch
from mmcl.training.optimization.step import TrainStep

from ..processes import TRAIN, launch

ANIMALS, VERBS = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits")
PAIRS = [(f"a {animal} {verb} here", f"the {animal} {verb}") for animal in ANIMALS for verb in VERBS]
# Anchors and positives that come again, a positive that is an anchor elsewhere, and a row with two positives.
PAIRS += [
    ("a dog runs here", "a running dog"),
    ("some hound", "the dog runs"),
    ("the cat eats", "food"),
    ("pets", ["the cat runs", "the hen eats"]),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS]
    tower = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 80}}
    return {
        "method": {"name": "simcse"},
        "data": {
            "train": {"source": write(tmp_path / "rows.jsonl", rows)},
            "columns": {"anchor": "anchor", "positive": "positive"},
            "mining": {"start": 2, "every": 3, "count": 2, "depth": 8},
        },
        "model": {"dim": 16, "text": {**tower, "head": {"kind": "none"}}},
        "training": {
            "epochs": 4,
            "batch_size": 12,
            "lr": 3e-3,
            "log_every": 1,
            "save_every": 1,
            "keep": 99,
            "precision": "float32",
        },
    }


def run_of(config, folder, *overrides, **options):
    return train(config, out=folder, overrides=overrides, show_progress=False, **options)


def files_of(folder):
    """Step to the lines of its file."""
    return {int(p.stem.removeprefix("step-")): pq.read_table(p).to_pylist() for p in sorted(folder.glob("mined/*"))}


def texts(cell):
    return [cell] if isinstance(cell, str) else cell


def encoder_at(config, folder, step):
    method = build_method(load_config(config), folder)
    load_checkpoint(folder / "checkpoints" / f"step-{step:08d}", method, None)
    encoder = Encoder(method.encoder.eval())
    encoder.set_compute("float32")
    return encoder


def positives_that_may_be_negatives(row):
    """The distinct positives that are not the row's own in any way."""
    anchor, positive = PAIRS[row]
    own = {anchor, *texts(positive)}
    own |= {text for other, cell in PAIRS if other in own for text in texts(cell)}
    return sorted({text for _, cell in PAIRS for text in texts(cell)} - own)


def expected_of(encoder, row, count, passes):
    """Similarity of the row's positive; text and similarity of its hard negatives among the nearest eight."""
    anchor, positive = PAIRS[row]
    candidates = positives_that_may_be_negatives(row)
    vector = encoder.encode(anchor)
    own = min(float(encoder.encode(text) @ vector) for text in texts(positive))
    scores = encoder.encode(candidates) @ vector
    nearest = np.argsort(-scores)[:8]
    return own, [(candidates[n], float(scores[n])) for n in nearest if passes(candidates[n], scores[n], own)][:count]


def check_against(encoder, lines, passes=lambda text, score, own: score < own, count=2):
    """Returns how many were drawn at random."""
    rows = [line["row"] for line in lines]
    assert rows == [row for row in range(len(PAIRS)) for _ in range(count)]
    random = 0
    for row in range(len(PAIRS)):
        own, expected = expected_of(encoder, row, count, passes)
        for place, line in enumerate(lines[row * count : row * count + count]):
            assert line["positive_score"] == pytest.approx(own, abs=1e-5)
            assert line["anchor"] == str(row)
            stands_in = texts(PAIRS[int(line["negative"])][1])
            assert set(stands_in) & set(positives_that_may_be_negatives(row))
            if line["rank"] < 0:
                random += 1
                assert place >= len(expected)
                continue
            assert expected[place][0] in stands_in
            assert line["score"] == pytest.approx(expected[place][1], abs=1e-5)
    return random


def test_what_is_mined_follows_from_the_weights_at_that_step(tmp_path, config, caplog):
    run = run_of(config, tmp_path / "run")
    files = files_of(run.folder)
    assert list(files) == [2, 5]
    random = 0
    for step, lines in files.items():
        random += check_against(encoder_at(config, run.folder, step), lines)
    messages = [record.getMessage() for record in caplog.records if "random ones instead" in record.getMessage()]
    assert len(messages) == (random > 0)
    assert files[2] != files[5], "the model has learned in between"


@pytest.mark.parametrize(
    ("depth", "cure"), [(2, "a larger depth finds more"), (1000, "only wider limits let more pass")]
)
def test_random_negatives_are_reported_each_time_and_their_cure_once(tmp_path, config, caplog, depth, cure):
    with caplog.at_level(logging.INFO, logger="mmcl"):
        run_of(config, tmp_path / "run", f"data.mining.depth={depth}", "data.mining.margin=3.0")
    messages = [record.getMessage() for record in caplog.records]
    assert len([line for line in messages if "random ones instead" in line and line.endswith(cure)]) == 1
    assert len([line for line in messages if line.endswith("; 100% are random ones")]) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_what_was_mined_last_and_nothing_before(tmp_path, config, monkeypatch, workers):
    recorded = []
    step = TrainStep.__call__

    def spy(self, batches, number, rate):
        recorded.append((number, batches))
        return step(self, batches, number, rate)

    monkeypatch.setattr(TrainStep, "__call__", spy)
    changes = [f"data.workers={workers}", "data.prefetch=3", "training.accumulate=2", "training.epochs=8"]
    changes += ["method.hard_negative_weight=2.0"]
    run = run_of(config, tmp_path / "run", *changes)
    files = files_of(run.folder)
    assert [step.number for step, _ in recorded] == list(range(8))
    processor = mmcl.load(run.folder).embedder("text").processor
    for number, batches in ((step.number, batches) for step, batches in recorded):
        assert len(batches) == 2
        for batch in batches:
            if number < 2:
                assert MINED not in batch.extra
                continue
            lines = files[max(step for step in files if step <= number)]
            assert len(batch.extra[MINED]["input_ids"]) == 2 * len(batch.rows)
            for place, identities in enumerate(batch.extra_ids[MINED].tolist()):
                line = lines[2 * int(batch.rows[place // 2]) + place % 2]
                anchor, positive = PAIRS[int(line["negative"])]
                assert [identities[0]] == processor.identities([anchor]).tolist()
                assert identities[1] in processor.identities(texts(positive)).tolist()


@pytest.mark.parametrize("last", [4, 5, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, config, last):
    """Cut between two minings, just before one, and just after one."""
    changes = ["model.text.dropout=0.2", "data.mining.choice=random", "text_augmentation.drop=0.2"]
    uninterrupted = run_of(config, tmp_path / "uninterrupted", *changes)
    shutil.copytree(uninterrupted.folder, tmp_path / "cut")
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > last:
            shutil.rmtree(checkpoint)
    resumed = run_of(config, tmp_path / "cut", *changes, resume=True)
    assert files_of(resumed.folder) == files_of(uninterrupted.folder)
    weights = [load_file(run.folder / "model" / "model.safetensors") for run in (uninterrupted, resumed)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_finished_run_that_is_resumed_mines_nothing_more(tmp_path, config):
    """It would be due before step 8, which there is not."""
    run = run_of(config, tmp_path / "run")
    files = files_of(run.folder)
    run_of(config, run.folder, resume=True)
    assert list(files) == [2, 5]
    assert files_of(run.folder) == files


@pytest.mark.parametrize("start", [0, 1])
def test_the_time_of_a_run_has_that_of_its_minings(tmp_path, config, monkeypatch, start):
    refresh = Miner.refresh
    monkeypatch.setattr(Miner, "refresh", lambda self, step: time.sleep(2.0) or refresh(self, step))
    run = run_of(config, tmp_path / "run", f"data.mining.start={start}", "data.mining.every=null", "training.epochs=1")
    state = json.loads((run.folder / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["seconds"] > 2.0


def test_processes_wait_at_a_barrier_for_the_one_that_writes(tmp_path, config, monkeypatch):
    """Any other exchange ends after training.timeout, and a file of many rows takes its time."""
    trainer = Trainer(load_config(config), tmp_path / "run", resume=False, show_progress=False)
    write, calls = Miner._write, []
    monkeypatch.setattr(Miner, "_write", lambda self, *args: calls.append("write") or write(self, *args))
    monkeypatch.setattr(distributed, "barrier", lambda: calls.append("barrier"))
    trainer.miner.refresh(2)
    trainer.metrics.close()
    assert calls == ["write", "barrier"]


def test_what_is_open_is_closed_where_the_first_mining_fails(tmp_path, config, monkeypatch):
    closed = []
    close = MetricsLog.close
    monkeypatch.setattr(MetricsLog, "close", lambda self: closed.append(True) or close(self))
    monkeypatch.setattr(Miner, "refresh", lambda self, step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_of(config, tmp_path / "run", "data.mining.start=0")
    assert closed


def test_what_a_killed_run_left_is_removed(tmp_path, config):
    run = run_of(config, tmp_path / "run")
    (run.folder / "mined" / ".step-00000008.parquet.7.part").write_text("")
    (run.folder / "checkpoints" / ".step-00000008.part").mkdir()
    run_of(config, run.folder, resume=True)
    assert not list(run.folder.glob("*/.*"))
    shutil.rmtree(run.folder / "checkpoints")  # as if nothing had been learned yet: the folder is taken over
    (run.folder / "metrics.jsonl").unlink()
    run_of(config, run.folder, "data.mining=null", "training.epochs=0.5")
    assert not (run.folder / "mined").exists()


def test_a_run_is_not_resumed_without_what_was_mined(tmp_path, config):
    run = run_of(config, tmp_path / "run")
    for checkpoint in run.folder.glob("checkpoints/*"):
        if checkpoint.name > "step-00000006":
            shutil.rmtree(checkpoint)
    path = run.folder / "mined" / "step-00000005.parquet"
    written = path.read_bytes()
    middle = slice(len(written) // 8, len(written) // 2)
    for content in (
        written[: middle.start] + bytes(byte ^ 85 for byte in written[middle]) + written[middle.stop :],
        b"",
        None,
    ):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(MmclError, match=r"step-00000005\.parquet: the negatives .* missing or damaged .*--out$"):
            run_of(config, run.folder, resume=True)


def test_micro_batches_take_them_along(tmp_path, config):
    changes = ["data.mining.start=1", "model.text.dropout=0", "method.symmetric=true"]
    plain = run_of(config, tmp_path / "plain", *changes)
    cached = run_of(config, tmp_path / "cached", *changes, "training.micro_batch=5")
    for one, other in zip(plain.lines(), cached.lines(), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)


def test_mined_once_they_stay(tmp_path, config):
    run = run_of(config, tmp_path / "run", "data.mining.every=null", "data.mining.start=0")
    assert list(files_of(run.folder)) == [0]


def test_limits_and_a_guide_keep_out_what_is_too_close(tmp_path, config):
    guide = run_of(config, tmp_path / "guide", "data.mining=null", "seed=5").folder
    run = run_of(
        config,
        tmp_path / "run",
        "data.mining.choice=top",
        "data.mining.relative_margin=0.1",
        f"data.mining.guide={guide}",
        "data.mining.start=6",
    )
    model, judge = encoder_at(config, run.folder, 6), mmcl.load(guide, dtype="float32")
    closer = {}
    for row, (anchor, positive) in enumerate(PAIRS):
        vector = judge.encode(anchor)
        limit = min(float(judge.encode(text) @ vector) for text in texts(positive))
        closer[row] = {text for text in positives_that_may_be_negatives(row) if judge.encode(text) @ vector > limit}
    lines, excluded = files_of(run.folder)[6], 0
    for row in range(len(PAIRS)):
        _, near = expected_of(model, row, 8, lambda text, score, own: score < own - 0.1 * abs(own))
        allowed = [text for text, _ in near if text not in closer[row]]
        excluded += len(near) > len(allowed)
        taken = [line for line in lines[2 * row : 2 * row + 2] if line["rank"] >= 0]
        assert len(taken) == min(2, len(allowed))
        for line, text in zip(taken, allowed, strict=False):
            assert text in texts(PAIRS[int(line["negative"])][1])
    assert excluded > 0, "the guide has a say"


def test_a_guide_of_the_loss_sees_mined_negatives_too(tmp_path, config):
    guide = run_of(config, tmp_path / "guide", "data.mining=null").folder
    changes = [f"method.guide={{name: {guide}}}", "method.matryoshka={dims: [8]}", "data.mining.start=0"]
    trainer = Trainer(load_config(config, changes), tmp_path / "run", resume=False, show_progress=False)
    batches, _ = trainer._batches()
    batch = next(batches)
    batches.close()
    outputs = trainer.method.train().outputs(batch)
    texts_of = dict(zip(trainer.feed.columns["positive"].hashes.tolist(), flat_positives(), strict=True))
    expected = mmcl.load(guide, dtype="float32").encode(
        [texts_of[identity] for identity in batch.extra_ids[MINED][:, 1].tolist()]
    )
    got = torch.nn.functional.normalize(outputs.rows.references["guide"][MINED], dim=1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert torch.isfinite(trainer.method.loss(trainer.method.project(outputs), Step(0, 1)).value)
    trainer.metrics.close()


def flat_positives():
    return [text for _, positive in PAIRS for text in texts(positive)]


def test_hard_captions_of_images_are_of_other_images(tmp_path, shapes_config):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
        rows.append({"image": path.name, "text": [f"image {number}", f"photo of {number}"]})
    rows += [{"image": "0.png", "text": "a third caption"}, {"image": "1.png", "text": "image 2"}]
    source = write(tmp_path / "rows.jsonl", rows)
    changes = [f"data.train={{source: {source}}}", "data.mining={count: 3, depth: 30, choice: top}", "evaluation={}"]
    changes += ["training.batch_size=4", "training.epochs=0.7", "method.extra_texts=2"]
    run = run_of(shapes_config, tmp_path / "run", *changes)
    captions = {}
    for row in rows:
        captions.setdefault(row["image"], set()).update(texts(row["text"]))
    (lines,) = files_of(run.folder).values()
    assert len(lines) == 3 * len(rows)
    processor = mmcl.load(run.folder).embedder("text").processor
    captions_of = {text for row in rows for text in texts(row["text"])}
    corpus = sorted(captions_of, key=lambda text: int(processor.identities([text])[0]))
    for line in lines:
        image = rows[line["row"]]["image"]
        assert corpus[line["item"]] not in captions[image]
        assert corpus[line["item"]] in texts(rows[int(line["negative"])]["text"])


def test_memory_is_measured_with_mined_negatives(tmp_path, config):
    trainer = Trainer(load_config(config), tmp_path / "run", resume=False, show_progress=False)
    with trainer.miner.full_load():
        batch = longest_batch(trainer.feed, trainer.method)
    assert len(batch.extra_ids[MINED]) == 2 * len(batch.ids)
    assert trainer.feed.hard is None
    trainer.metrics.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mining.depth=1"], r"in 'data\.mining': depth: 1 items do not hold 2 negatives"),
        (["data.mining.choice=hardest"], r"'data\.mining\.choice' is 'hardest'"),
        (["data.mining.relative_margin=1.5"], r"'data\.mining\.relative_margin' is 1\.5"),
        (["data.mining.start=900"], r"data\.mining\.start: 900, but the run has 8 steps"),
        (
            ["data.mining.count=32", "data.mining.depth=32"],
            r"data\.mining\.count: 32 negatives .* has only 30 of the 32",
        ),
        (["data.mining.guide=nowhere/model"], r"nowhere/model"),
        (["method=scored_pairs"], r"data\.mining: hard negatives are mined for clip and for simcse on pairs"),
        (["data.columns={text: anchor}"], r"data\.mining: hard negatives are mined for clip and for simcse on pairs"),
    ],
)
def test_mistakes_are_reported_in_a_line(tmp_path, config, overrides, message):
    config["data"]["columns"] = {} if overrides[0].startswith("data.columns") else config["data"]["columns"]
    with pytest.raises(MmclError, match=message) as caught:
        run_of(config, tmp_path / "run", *overrides)
    assert "\n" not in str(caught.value)


def test_streams_are_refused(tmp_path, config):
    import io
    import tarfile

    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for number, (anchor, positive) in enumerate(PAIRS[:30]):
            for role, text in (("anchor", anchor), ("positive", positive)):
                info = tarfile.TarInfo(f"{number}.{role}.txt")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    columns = {"anchor": "anchor.txt", "positive": "positive.txt"}
    config["data"] |= {"train": {"source": str(shard)}, "columns": columns}
    with pytest.raises(MmclError, match=r"a\.tar: mining needs tables, .*; leave out data\.mining"):
        run_of(config, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_mine_and_learn_what_one_does(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(
        to_yaml(load_config(config, ["model.text.dropout=0", "data.mining.choice=random", "data.mining.start=0"]))
    )
    run_of(load_config(path), tmp_path / "1")
    launch(TRAIN, path, tmp_path / "2")
    one, two = (files_of(tmp_path / name) for name in "12")
    assert list(one) == list(two) == [0, 3, 6]
    for step, lines in one.items():
        columns = ["row", "positive_score"] + ([] if step else ["anchor", "negative", "item", "score", "rank"])
        for alone, shared in zip(lines, two[step], strict=True):  # after some steps near ties may fall either way
            for column in columns:
                assert shared[column] == pytest.approx(alone[column], abs=1e-3), column
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in "12"]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
