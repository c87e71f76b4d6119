"""Training on tar shards: bad samples are counted and named, and a run that was cut off ends as one left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmcl.data.sources import open_source
from mmcl.data.sources.tar.write import write_shards
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.checkpoint import list_checkpoints

BAD = 0.6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four shards of 40 drawn shapes; 60% of the images of the second one are cut short."""
    rows = open_source("sample:shapes", split="train").select(range(160))
    contents, captions = rows.images("image", range(160)), rows.texts("text")
    samples = []
    for number, (image, caption) in enumerate(zip(contents, captions, strict=True)):
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
        broken = 40 <= number < 40 + BAD * 40
        samples.append({"__key__": f"{number:05d}", "png": content[:60] if broken else content, "txt": caption})
    folder = tmp_path_factory.mktemp("shards")
    write_shards(samples, folder, per_shard=40)
    return folder


@pytest.fixture
def config(shapes_config, shards):
    data = {"train": {"source": str(shards / "{00000..00003}.tar")}, "image": {"size": 32}, "shuffle": 30, "workers": 2}
    training = shapes_config["training"] | {"batch_size": 16, "epochs": 2, "save_every": 4}
    return shapes_config | {"data": data, "training": training, "evaluation": {}}


def test_a_shard_of_mostly_corrupt_images_is_counted_named_and_survived(tmp_path, config, caplog):
    with caplog.at_level("WARNING", logger="mmcl"):
        run = train(config, out=tmp_path / "run", show_progress=False)
    skipped = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    assert {line["id"] for line in skipped} == {f"00001.tar:{number:05d}" for number in range(40, 64)}
    assert len(skipped) == 24
    assert all(line["role"] == "image" and line["reason"] for line in skipped)
    assert run.card["data"]["skipped"] == 24
    assert "24 samples skipped" in caplog.text


def test_a_run_cut_off_within_an_epoch_ends_with_the_same_weights(tmp_path, config):
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False).folder
    cut = tmp_path / "cut"
    shutil.copytree(uninterrupted, cut)
    shutil.rmtree(cut / "model")
    (cut / "skipped.jsonl").unlink()
    shutil.rmtree(list_checkpoints(cut)[-1])
    resumed = train(config, out=cut, resume=True, show_progress=False).folder
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (resumed, uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_shards_to_learn_from_and_a_table_to_judge_by_name_their_own_columns(tmp_path, config):
    rows = open_source("sample:shapes", split="dev").select(range(20))
    lines = ["path,caption"]
    for number, (image, text) in enumerate(zip(rows.images("image", range(20)), rows.texts("text"), strict=True)):
        (tmp_path / f"{number}.png").write_bytes(image if isinstance(image, bytes) else Path(image).read_bytes())
        lines.append(f"{number}.png,{text}")
    (tmp_path / "dev.csv").write_text("\n".join(lines) + "\n")
    config["data"]["columns"] = {"image": "png;jpg", "text": "txt"}
    source = {"source": str(tmp_path / "dev.csv"), "columns": {"image": "path", "text": "caption"}}
    config |= {"evaluation": {"sources": {"dev": source}}, "training": config["training"] | {"epochs": 0.3}}
    run = train(config, out=tmp_path / "run", show_progress=False)
    assert 0 <= run.metrics["dev/image_to_text/hit@1"] <= 1


def test_shards_without_the_named_column_are_refused_before_a_tokenizer_is_trained(tmp_path, config):
    config["data"]["columns"] = {"text": "caption"}
    with pytest.raises(MmclError, match="no sample has caption for 'text'; they have png, txt"):
        train(config, out=tmp_path / "run", show_progress=False)


def test_a_teacher_is_learned_from_over_shards_as_well(tmp_path, config):
    teacher = train(config, out=tmp_path / "teacher", show_progress=False).folder
    config["method"] = {"name": "clip", "teacher": {"name": str(teacher)}}
    uninterrupted = train(config, out=tmp_path / "uninterrupted", show_progress=False)
    terms = [line["distillation"] for line in uninterrupted.lines() if "distillation" in line]
    assert 0 < terms[-1] < terms[0]
    cut = tmp_path / "cut"
    shutil.copytree(uninterrupted.folder, cut)
    shutil.rmtree(cut / "model")
    shutil.rmtree(list_checkpoints(cut)[-1])
    resumed = train(config, out=cut, resume=True, show_progress=False).folder
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (resumed, uninterrupted.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
