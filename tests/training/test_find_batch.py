"""The largest batch that fits: the search against memory of a known law, and a real trial."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmcl.data.batches.batch import Batch
from mmcl.runtime.errors import MmclError
from mmcl.training.find_batch import MULTIPLE, grown, largest_that_fits


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


def test_there_is_no_batch_larger_than_the_data():
    assert largest_that_fits(lambda rows: 1.0, 99.0, 16, 100) == 96


def test_a_grown_batch_repeats_rows_that_are_all_different_things():
    batch = Batch(
        {"image": {"pixels": torch.arange(3)[:, None]}},
        torch.zeros(3, 2, dtype=torch.int64),
        torch.arange(3),
        torch.arange(3),
    )
    grown_batch = grown(batch, 8)
    assert grown_batch.inputs["image"]["pixels"][:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(set(grown_batch.ids[:, 0].tolist())) == 8


def test_a_run_takes_the_batch_that_was_found_and_keeps_it(tmp_path, shapes_config, monkeypatch):
    from mmcl.training import find_batch, train

    gib = 2**30
    monkeypatch.setattr(find_batch._HostMemory, "total", lambda self: 1e4 * gib)
    monkeypatch.setattr(find_batch._HostMemory, "reset", lambda self: None)
    # 100 GiB a row, told by the number of rows of the step under trial
    rows = []
    grow = find_batch.grown
    monkeypatch.setattr(find_batch, "grown", lambda batch, n: rows.append(n) or grow(batch, n))
    monkeypatch.setattr(find_batch._HostMemory, "peak", lambda self: rows[-1] * 100.0 * gib)
    shapes_config["training"] |= {"epochs": 0.2}
    run = train(shapes_config, out=tmp_path / "run", find_batch=True, show_progress=False)
    found = run.config.training.batch_size
    assert 64 <= found <= 85
    assert found == max(rows)
    again = train(shapes_config, out=tmp_path / "run", find_batch=True, resume=True, show_progress=False)
    assert again.config.training.batch_size == found


def test_the_queue_is_full_in_every_trial(tmp_path, shapes_config, monkeypatch):
    from mmcl.config.load import load_config
    from mmcl.methods.parts.queue import MemoryQueue
    from mmcl.training import find_batch

    monkeypatch.setattr(find_batch._HostMemory, "reset", lambda self: None)
    monkeypatch.setattr(find_batch._HostMemory, "total", lambda self: 10.0)
    monkeypatch.setattr(find_batch._HostMemory, "peak", lambda self: 5.0 * len(seen))
    seen = []
    past = MemoryQueue.past

    def spy(self):
        rows = past(self)
        seen.append({name: len(vectors) for name, vectors in rows.items()})
        return rows

    monkeypatch.setattr(MemoryQueue, "past", spy)
    config = load_config(shapes_config, ["method.queue={size: 4096, start: 50, momentum: 0.9}"])
    with pytest.raises(MmclError, match="not even 16 rows"):  # after the two first trials
        find_batch.find_batch(config, tmp_path / "run")
    assert len(seen) >= 2
    assert all(rows == {"image": 4096, "text": 4096, "ids": 4096} for rows in seen)


def test_texts_are_as_long_as_they_can_be_and_say_the_same(tmp_path, shapes_config):
    """A GPU pads a batch to its longest text, and thousands of rows have a longer one than the few of a trial."""
    from mmcl.config.load import load_config
    from mmcl.training import find_batch

    trainer, batch = find_batch._ready(load_config(shapes_config), tmp_path / "run", 16)
    tokens = trainer.feed.columns["text"]._parts[0].tokens
    longest = max(len(text) for text in tokens.take(np.arange(len(tokens.hashes))))
    ids, mask = batch.inputs["text"]["input_ids"], batch.inputs["text"]["attention_mask"]
    assert ids.shape == mask.shape == (16, longest)
    text = trainer.method.encoder.embedder("text").eval()
    with torch.no_grad():
        short = int(mask.sum(dim=1).max())
        trimmed = text(input_ids=ids[:, :short], attention_mask=mask[:, :short])
        torch.testing.assert_close(text(input_ids=ids, attention_mask=mask), trimmed)
    padded = {"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    find_batch.pad_texts(padded, 4, padding=9)
    assert padded["input_ids"].tolist() == [[5, 6, 9, 9], [7, 0, 9, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_a_trial_that_several_processes_cannot_come_back_from_ends_in_one_line(tmp_path, shapes_config, monkeypatch):
    from mmcl.config.load import load_config
    from mmcl.training import find_batch

    def step(batches, number, rate):
        numbers.append(number)
        if len(batches[0].rows) > 32:
            raise torch.OutOfMemoryError

    numbers: list[int] = []
    rows = torch.arange(16)
    batch = Batch({"image": {"pixels": rows[:, None]}}, rows[:, None], rows, rows)
    trainer = SimpleNamespace(device=torch.device("cpu"), feed=SimpleNamespace(samples=1000), step=step)
    monkeypatch.setattr(find_batch, "_ready", lambda *_: (trainer, batch))
    monkeypatch.setattr(find_batch, "_memory", FixedMemory)
    monkeypatch.setattr(find_batch.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(find_batch.distributed, "largest", lambda value, device: value)
    config = load_config(shapes_config)
    with pytest.raises(MmclError, match=r"^--find-batch: 64 rows in each of 2 processes exceed .*; 32 did not: set"):
        find_batch.find_batch(config, tmp_path / "run")
    assert numbers == [0, 1, 2, 3]  # what a first step tells is told once


class FixedMemory:
    def __init__(self, device: torch.device) -> None:
        pass

    def reset(self) -> None:
        pass

    def peak(self) -> float:
        return 1.0

    def total(self) -> float:
        return 1e6


def test_a_search_that_was_cut_off_is_not_taken_for_a_run(tmp_path, shapes_config, monkeypatch):
    """Its folder has a config.yaml with the batch of the first trial, which a resumed run would learn with."""
    from mmcl.config.load import load_config
    from mmcl.training import find_batch
    from mmcl.training.loop import Trainer

    config = load_config(shapes_config, [f"training.batch_size={find_batch.SMALLEST}"])
    Trainer(config, tmp_path / "run", resume=False, show_progress=False)
    monkeypatch.setattr(find_batch, "find_batch", lambda config, folder: 128)
    assert find_batch.fitting(config, tmp_path / "run", resume=True).training.batch_size == 128
