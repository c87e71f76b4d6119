"""The largest micro-batch that fits: the search against memory of a known law, and in a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmcl.config.load import load_config
from mmcl.config.training import TrainingConfig
from mmcl.data.batches.batch import Batch
from mmcl.methods.parts.queue import MemoryQueue
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.loop import Trainer
from mmcl.training.optimization import auto_micro_batch
from mmcl.training.optimization.auto_micro_batch import MULTIPLE, largest_that_fits, longest_batch, pad_texts
from mmcl.training.optimization.step import TrainStep


@pytest.mark.parametrize(("fixed", "linear", "square"), [(50.0, 1.0, 0.0), (10.0, 0.5, 1e-3), (0.0, 3.0, 0.0)])
@pytest.mark.parametrize("budget", [120.0, 1000.0, 7777.0])
def test_what_is_found_fits_and_no_trial_exceeds_the_budget_by_much(fixed, linear, square, budget):
    tried = []

    def peak(rows):
        tried.append(rows)
        return fixed + linear * rows + square * rows**2

    found = largest_that_fits(peak, budget, 16, 1 << 20)
    best = max(rows for rows in range(8, 20_000, 8) if fixed + linear * rows + square * rows**2 <= budget)
    assert peak(found) <= budget
    assert found % MULTIPLE == 0
    assert found >= best / 2
    assert max(tried) <= 1.3 * best


def test_nothing_is_found_where_the_smallest_does_not_fit():
    assert largest_that_fits(lambda rows: 100.0, 99.0, 16, 1000) is None


def test_no_micro_batch_is_larger_than_the_batch():
    assert largest_that_fits(lambda rows: 1.0, 99.0, 16, 100) == 96


@pytest.fixture
def memory(monkeypatch):
    """A machine in which a step needs 1 GiB for every row of a micro-batch; gives the micro-batches of all steps."""
    sizes, gib = [], 2**30
    step = TrainStep.__call__

    def spy(self, batches, *args):
        sizes.append(self.settings.micro_batch or len(batches[0].ids))
        return step(self, batches, *args)

    monkeypatch.setattr(TrainStep, "__call__", spy)
    monkeypatch.setattr(auto_micro_batch.HostMemory, "reset", lambda self: None)
    monkeypatch.setattr(auto_micro_batch.HostMemory, "total", lambda self: 30 * gib / auto_micro_batch.SHARE)
    monkeypatch.setattr(auto_micro_batch.HostMemory, "peak", lambda self: sizes[-1] * gib)
    return sizes


def test_a_run_is_that_of_the_micro_batch_that_was_found_and_keeps_it(tmp_path, shapes_config, memory):
    """The search leaves weights, optimizer, average and random numbers as they were, bit for bit."""
    changes = ["training.epochs=0.1", "training.average=0.9", "model.text.dropout=0.1", "training.micro_batch=auto"]
    run = train(shapes_config, out=tmp_path / "auto", overrides=changes, show_progress=False)
    found = run.config.training.micro_batch
    assert found == 24
    assert max(memory) == 24
    changes[-1] = f"training.micro_batch={found}"
    same = train(shapes_config, out=tmp_path / "given", overrides=changes, show_progress=False)
    ours, theirs = (load_file(each.folder / "model" / "model.safetensors") for each in (run, same))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    del memory[:]
    changes[-1] = "training.micro_batch=auto"
    again = train(shapes_config, out=tmp_path / "auto", overrides=changes, resume=True, show_progress=False)
    assert again.config.training.micro_batch == found
    assert not memory


def test_the_queue_is_full_in_every_trial_and_empty_afterwards(tmp_path, shapes_config, memory, monkeypatch):
    filled = []
    contents = MemoryQueue.contents

    def spy(self):
        rows = contents(self)
        filled.append(len(rows["ids"]))
        return rows

    monkeypatch.setattr(MemoryQueue, "contents", spy)
    config = load_config(shapes_config, ["method.queue={size: 512, start: 0, momentum: 0.9}"])
    trainer = Trainer(config, tmp_path / "run", resume=False, show_progress=False)
    trainer.method.train()
    trainer._find_micro_batch()
    assert set(filled) == {512}
    assert trainer.method.queue.filled == 0
    trainer.metrics.close()


def test_texts_are_as_long_as_they_can_be_and_say_the_same(tmp_path, shapes_config):
    """A GPU pads a batch to its longest text, and thousands of rows have a longer one than the few of a trial."""
    trainer = Trainer(load_config(shapes_config), tmp_path / "run", resume=False, show_progress=False)
    batch = longest_batch(trainer.feed, trainer.method)
    trainer.metrics.close()
    tokens = trainer.feed.columns["text"]._parts[0].tokens
    longest = max(len(text) for text in tokens.take(np.arange(len(tokens.hashes))))
    ids, mask = batch.inputs["text"]["input_ids"], batch.inputs["text"]["attention_mask"]
    assert ids.shape == mask.shape == (64, longest)
    text = trainer.method.encoder.embedder("text").eval()
    with torch.no_grad():
        short = int(mask.sum(dim=1).max())
        trimmed = text(input_ids=ids[:, :short], attention_mask=mask[:, :short])
        torch.testing.assert_close(text(input_ids=ids, attention_mask=mask), trimmed)
    padded = {"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    pad_texts(padded, 4, padding=9)
    assert padded["input_ids"].tolist() == [[5, 6, 9, 9], [7, 0, 9, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_a_trial_that_several_processes_cannot_come_back_from_ends_in_one_line(monkeypatch):
    def run(batch):
        if step.settings.micro_batch == 32:
            raise torch.OutOfMemoryError

    rows = torch.arange(128)
    batch = Batch({"image": {"pixels": rows[:, None]}}, rows[:, None], rows, rows)
    step = SimpleNamespace(settings=TrainingConfig(), device=torch.device("cpu"))
    memory = SimpleNamespace(reset=lambda: None, peak=lambda: 1.0)
    monkeypatch.setattr(auto_micro_batch.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(auto_micro_batch.distributed, "all_reduce_max", lambda value, device: value)
    peak = auto_micro_batch._Peak(step, batch, run, memory)
    with pytest.raises(MmclError, match=r"auto: 32 rows in each of 2 processes exceed .*; 16 did not: set it yourself"):
        largest_that_fits(peak, 1e6, 8, 128)


def test_a_search_that_was_cut_off_is_made_again(tmp_path, shapes_config, memory):
    config = load_config(shapes_config, ["training.micro_batch=auto", "training.epochs=0.05"])
    Trainer(config, tmp_path / "run", resume=False, show_progress=False).metrics.close()
    run = train(config, out=tmp_path / "run", show_progress=False)
    assert run.config.training.micro_batch == 24
