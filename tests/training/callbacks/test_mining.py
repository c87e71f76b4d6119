"""Hard negatives mined in a run: the right ones, in the right batches."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

import mmcl
from mmcl.config.load import load_config
from mmcl.data.batches.batch import MINED
from mmcl.methods.step import Step
from mmcl.runtime.errors import MmclError
from mmcl.training.loop import Trainer
from mmcl.training.optimization.auto_micro_batch import longest_batch
from mmcl.training.optimization.step import TrainStep

from .mined import (
    PAIRS,
    check_against,
    encoder_at,
    expected_of,
    files_of,
    positives_that_may_be_negatives,
    run_of,
    texts,
    write,
)


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
    # One that has learned nothing: it finds many texts closer than the positives.
    guide = run_of(config, tmp_path / "guide", "data.mining=null", "seed=2", "training.lr=1e-9").folder
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
