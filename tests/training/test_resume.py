"""Interrupted and resumed runs: nothing that was learned is lost, and what is yet to come may be changed."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from mmcl.config.load import load_config
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.callbacks.evaluations import Evaluations
from mmcl.training.check_config import check_config
from mmcl.training.checkpoint import current_names, list_checkpoints
from mmcl.training.interrupt import Interrupts
from mmcl.training.loop import Trainer


def run_of(config, folder, *overrides, resume=False):
    return train(config, out=folder, overrides=overrides, resume=resume, show_progress=False)


def weights(run):
    return load_file(run.folder / "model" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def default_handlers():
    """Those of a process in the foreground of a shell."""
    before = [(n, signal.signal(n, h)) for n, h in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, 0))]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def _interrupt(monkeypatch, name, at, number):
    """A signal arrives in method ``name`` of the trainer or of its evaluations, the first time that it has done ``at``
    steps."""
    owner = Evaluations if name == "_evaluate" else Trainer
    honest, sent = getattr(owner, name), []

    def interrupted(self, *args):
        progress = args[0] if owner is Evaluations else self.progress
        if progress.step == at and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return honest(self, *args)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.fixture(scope="module")
def left_alone(words, tmp_path_factory):
    """A run with evaluations, mining and an average on its way; and the settings that make it."""
    changes = ["evaluation.every=1", "data.mining={start: 0, every: 4}", "training.average=0.9"]
    return run_of(words, tmp_path_factory.mktemp("uninterrupted") / "run", *changes), changes


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize(
    ("name", "at", "saved", "number"),
    [
        ("_step", 5, 6, signal.SIGTERM),
        ("_evaluate", 5, 5, signal.SIGINT),
        ("_log", 3, 3, signal.SIGINT),
        ("_save", 4, 4, signal.SIGINT),
        ("_batches", 0, None, signal.SIGINT),
    ],
)
def test_an_interrupted_run_keeps_its_steps_and_goes_on_bit_for_bit(
    tmp_path, words, left_alone, monkeypatch, name, at, saved, number
):
    uninterrupted, changes = left_alone
    with monkeypatch.context() as patch:
        _interrupt(patch, name, at, number)
        with pytest.raises(KeyboardInterrupt) as caught:
            run_of(words, tmp_path / "run", *changes)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if saved is None:
        assert "no checkpoint yet" in str(caught.value)
        assert list_checkpoints(tmp_path / "run") == []
        return
    assert f"interrupted at step {saved} of 10" in str(caught.value)
    assert f"step-{saved:08d}" in str(caught.value)
    resumed = run_of(words, tmp_path / "run", *changes, resume=True)
    assert same(weights(uninterrupted), weights(resumed))
    assert resumed.metrics == uninterrupted.metrics
    assert [line["step"] for line in resumed.lines() if "loss" in line] == list(range(1, 11))
    judged = [[line["step"] for line in run.lines() if "evaluation" in line] for run in (uninterrupted, resumed)]
    assert judged == [[5, 10]] * 2


@pytest.mark.usefixtures("default_handlers")
def test_a_second_interrupt_does_not_wait_and_leaves_no_checkpoint_of_half_a_step():
    done = []

    def work(signals):
        with interrupts.held():
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
            done.append("rest")

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        work(1)
    assert (done, interrupts.torn) == (["rest"], False)
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        work(2)
    assert (done, interrupts.torn) == (["rest"], True)


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_may_train_longer_and_log_judge_and_load_otherwise(tmp_path, words, caplog):
    constant = "training.schedule=constant", "training.warmup=2"
    run_of(words, tmp_path / "run", *constant)
    changes = ["training.epochs=4", "training.log_every=5", "data.workers=1", "evaluation.ks=[1,2]", "name=other"]
    longer = run_of(words, tmp_path / "run", *constant, *changes, resume=True)
    assert same(weights(longer), weights(run_of(words, tmp_path / "uninterrupted", *constant, "training.epochs=4")))
    assert longer.config.training.epochs == 4
    assert longer.lines()[-1]["step"] == 20
    assert "same/anchor_to_positive/hit@2" in longer.metrics
    assert "learning rate follows" not in caplog.text  # a constant one is the same for every length


def test_evaluations_say_what_they_are_computed_in(tmp_path, words, caplog):
    caplog.set_level("INFO")
    run = run_of(words, tmp_path / "run", "training.epochs=0.2")
    precision = run.model.compute
    assert f"step 1, judged in {precision}  same/" in caplog.text
    assert [line["precision"] for line in run.lines() if "evaluation" in line] == [precision]


def test_another_length_of_a_schedule_is_said(tmp_path, words, caplog):
    run_of(words, tmp_path / "run")
    run_of(words, tmp_path / "run", "training.epochs=3", resume=True)
    assert "training.epochs was 2 and is 3: 15 steps instead of 10" in caplog.text


def test_what_the_steps_done_depend_on_stays(tmp_path, words):
    run_of(words, tmp_path / "run")
    for change in ("training.lr=0.5", "training.batch_size=8", "seed=1", "model.dim=8", "training.schedule=linear"):
        with pytest.raises(MmclError, match=rf"'{change.split('=')[0]}' is not as in its config\.yaml"):
            run_of(words, tmp_path / "run", change, resume=True)
    with pytest.raises(
        MmclError, match=r"training\.epochs: 1 are 5 steps, of which .* has done 10 already; set it to 2"
    ):
        run_of(words, tmp_path / "run", "training.epochs=1", resume=True)
    assert load_config(tmp_path / "run" / "config.yaml").training.epochs == 2


def test_another_metric_to_choose_by_forgets_the_best_of_the_old_one(tmp_path, words):
    every = "evaluation.every=1"
    run_of(words, tmp_path / "run", every, "evaluation.best=same/anchor_to_positive/hit@1")
    changes = [every, "training.epochs=3", "evaluation.best=same/anchor_to_positive/median_rank"]
    run_of(words, tmp_path / "run", *changes, resume=True)
    state = json.loads((list_checkpoints(tmp_path / "run")[-1] / "state.json").read_text())
    assert state["best"] >= 1.0  # a rank, not a rate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "data.train.source=nowhere.csv",
            "^data.train.source: nowhere.csv: no such file or folder, relative to the working",
        ),
        ("data.columns.positive=positiv", "no column 'positiv'.*; name another with data.columns.positive"),
        ("data.mix=[{source: nowhere.csv}]", "^data.mix.0.source: nowhere.csv: no such file"),
        ("evaluation.sources.same.columns.anchor=q", "no column 'q'.* with evaluation.sources.same.columns.anchor"),
        ("evaluation.sources.same.source=nowhere.csv", "^evaluation.sources.same.source: nowhere.csv: no such file"),
        (
            "evaluation.sources.same={task: sts, source: nowhere.csv}",
            "^evaluation.sources.same.source: nowhere.csv: no such file",
        ),
        ("training.batch_size=64", "30 usable rows do not fill a batch of 64"),
        ("model.text={name: ./nowhere}", "nowhere"),
        ("training.accumulate=11", "training.accumulate: 11 batches a step"),
    ],
)
def test_mistakes_of_a_config_come_before_a_folder_that_is_taken(tmp_path, words, change, said):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(MmclError, match=said):
        run_of(words, tmp_path / "taken", change)
    with pytest.raises(MmclError, match=said):
        check_config(load_config(words, [change]), show_progress=False)
    with pytest.raises(MmclError, match="exists and is no run folder"):
        run_of(words, tmp_path / "taken")


def test_a_column_that_pairs_with_scores_lack_comes_with_its_setting(words):
    source = words["data"]["train"]["source"]
    overrides = [f"evaluation.sources={{dev: {{task: sts, source: {source}, split: null}}}}"]
    with pytest.raises(MmclError, match=r"'sentence1'.*; name another with evaluation.sources.dev.columns.sentence1"):
        check_config(load_config(words, overrides), show_progress=False)


def test_a_config_is_checked_without_training(words, monkeypatch):
    monkeypatch.setattr(Trainer, "_step", None)
    found = check_config(load_config(words), show_progress=False)
    assert (found["rows"], found["steps"], found["skipped"]) == (30, 10, 0)
    assert found["negatives"] == "5 negatives per query"
    assert found["judged"]["same"]["skipped"] == 0
    assert found["exports"] == ["transformers", "sentence-transformers", "onnx"]
    assert "needs an image tower" in found["no_exports"]["torchvision"]
    assert "image and a text tower" in found["no_exports"]["open-clip"]


def test_exports_that_the_model_cannot_have_are_said_before_training(tmp_path, words, caplog):
    caplog.set_level("INFO")
    run_of(words, tmp_path / "run", "training.epochs=0.2")
    export_lines = [line for line in caplog.messages if "can be exported" in line]
    assert export_lines == [
        "the model can be exported to transformers, sentence-transformers, onnx, not to open-clip, model2vec, timm, "
        "torchvision (mmcl config check says why)"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.epochs=1", "training.accumulate=6"], "accumulate: 6 batches a step, but training.epochs: 1 has 5"),
        (["training.epochs=0.5", "training.accumulate=4"], "has 3, an epoch being 5 of training.batch_size 6; lower"),
    ],
)
def test_a_step_of_more_batches_than_there_are_is_refused(tmp_path, words, changes, said):
    with pytest.raises(MmclError, match=said):
        run_of(words, tmp_path / "run", *changes)


def test_steps_that_take_more_batches_than_the_epochs_have_are_said(tmp_path, words, caplog):
    run_of(words, tmp_path / "run", "training.epochs=1", "training.accumulate=3")
    assert "steps of 3 batches take 6 of them in all, more than the 5 of 1 epochs" in caplog.text
    caplog.clear()
    run_of(words, tmp_path / "uninterrupted", "training.epochs=1", "training.accumulate=5")
    assert "more than" not in caplog.text


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "muon"])
def test_a_resumed_run_is_the_uninterrupted_one_with_every_optimizer(tmp_path, words, optimizer):
    changes = [f"training.optimizer={optimizer}", "training.epochs=1", "training.save_every=2", "training.keep=9"]
    full = run_of(words, tmp_path / "full", *changes, "evaluation={}")
    cut = shutil.copytree(full.folder, tmp_path / "cut")
    shutil.rmtree(cut / "model")
    for later in list_checkpoints(cut)[1:]:
        shutil.rmtree(later)
    resumed = train(full.config, out=cut, resume=True, show_progress=False)
    assert same(
        load_file(resumed.folder / "model" / "model.safetensors"),
        load_file(full.folder / "model" / "model.safetensors"),
    )
    assert learned(list_checkpoints(cut)[-1]) == learned(list_checkpoints(full.folder)[-1])


def learned(checkpoint):
    return [(checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


def test_former_names_of_heads_are_read_and_names_of_others_are_left():
    live = dict.fromkeys(["heads.projector.1.weight", "momentum.parts.projector.1.bias", "predictor.1.weight"])
    former = [
        "training_head.1.weight",
        "momentum.parts.training_head.1.bias",
        "predictor.1.weight",
        "prototypes.weight",
    ]
    names = ["heads.projector.1.weight", "momentum.parts.projector.1.bias", *former[2:]]
    assert list(current_names(dict.fromkeys(former), live)) == names
    assert list(current_names({"training_head.1.weight:exp_avg": None}, live)) == ["heads.projector.1.weight:exp_avg"]
