"""A run that diverges says so, wherever it shows: in a step, in the weights, in an evaluation or in mining."""

from __future__ import annotations

import pytest
import torch

from mmcl.runtime.errors import DivergedError, MmclError
from mmcl.training import train
from mmcl.training.checkpoint import list_checkpoints
from mmcl.training.loop import Trainer
from mmcl.training.optimization.step import TrainStep


def _spoil_after(monkeypatch, step, value):
    """What update ``step`` leaves in the weights is ``value``, as too high a learning rate does."""
    honest = Trainer._step

    def spoiling(self, taken, number, rate):
        result = honest(self, taken, number, rate)
        if number + 1 == step:
            with torch.no_grad():
                next(p for p in self.method.parameters() if p.requires_grad and p.ndim == 2).fill_(value)
        return result

    monkeypatch.setattr(Trainer, "_step", spoiling)


@pytest.mark.parametrize(
    ("step", "changes", "said"),
    [
        (3, [], r"the loss became nan at step 4; the batch's row ids are in .*last good checkpoint: none yet"),
        (5, ["evaluation.every=1"], r"30 of 30 text vectors became nan or infinite at step 5; last good .*00000004;"),
        (10, [], r"30 of 30 text vectors became nan or infinite at step 10; last good checkpoint: .*step-00000008;"),
        (4, ["evaluation={}"], r"weights became nan or infinite, such as .* at step 4; last good checkpoint: none"),
        (10, ["evaluation={}"], r"weights became nan or infinite, such as .*last good checkpoint: .*step-00000008;"),
        (5, ["data.mining={start: 5}"], r"text vectors became nan or infinite at step 5; last good .*00000004;"),
    ],
)
def test_divergence_is_reported_as_such_wherever_it_shows(tmp_path, words, monkeypatch, step, changes, said):
    _spoil_after(monkeypatch, step, torch.nan if step % 2 else torch.inf)
    with pytest.raises(DivergedError, match=said) as caught:
        train(words, out=tmp_path / "run", overrides=changes, show_progress=False)
    assert "leave" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()
    assert all(int(path.name[-8:]) < step for path in list_checkpoints(tmp_path / "run"))


def test_a_learning_rate_that_is_far_too_high_diverges(tmp_path, words):
    with pytest.raises(DivergedError, match=r"diverged: .* at step \d.*lower training\.lr"):
        train(words, out=tmp_path / "run", overrides=["training.lr=1e38", "training.warmup=0"], show_progress=False)


def test_a_guide_that_gives_nan_is_named(tmp_path, words):
    run = train(words, out=tmp_path / "guide", show_progress=False)
    encoder = run.model
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(torch.nan)
    guide = encoder.save(tmp_path / "broken")
    changes = [f"data.mining={{start: 0, guide: '{guide}'}}"]
    with pytest.raises(MmclError, match=r"broken") as caught:
        train(words, out=tmp_path / "run", overrides=changes, show_progress=False)
    assert not isinstance(caught.value, DivergedError)


def test_a_first_loss_that_is_nan_is_not_blamed_on_the_learning_rate(tmp_path, words, monkeypatch):
    honest = Trainer.__init__

    def spoiled(self, *args, **kwargs):
        honest(self, *args, **kwargs)
        with torch.no_grad():
            next(p for p in self.method.parameters() if p.requires_grad and p.ndim == 2).fill_(torch.nan)

    monkeypatch.setattr(Trainer, "__init__", spoiled)
    with pytest.raises(DivergedError, match=r"at step 1, by the model that it starts from") as caught:
        train(words, out=tmp_path / "run", overrides=["evaluation={}"], show_progress=False)
    assert "training.lr" not in str(caught.value)


def test_a_device_that_is_not_waited_for_diverges_a_step_late(tmp_path, words, monkeypatch):
    """As on a GPU: the numbers of a step are looked at when the next one is launched, and name the step's own rows."""
    honest = Trainer.__init__

    def queued(self, *args, **kwargs):
        honest(self, *args, **kwargs)
        self.step._waits = False

    monkeypatch.setattr(Trainer, "__init__", queued)
    checked = []
    watch = TrainStep.require_finite
    monkeypatch.setattr(TrainStep, "require_finite", lambda self: (checked.append(self._unchecked), watch(self)))
    _spoil_after(monkeypatch, 3, torch.nan)
    with pytest.raises(DivergedError, match=r"the loss became nan"):
        train(words, out=tmp_path / "run", overrides=["evaluation={}"], show_progress=False)
    assert checked[0] is None
    assert all(each is not None for each in checked[1:])
    assert not (tmp_path / "run" / "model").exists()
    assert list_checkpoints(tmp_path / "run") == []
