"""How a batch is cut into micro-batches."""

from __future__ import annotations

import pytest
import torch

from mmcl.config.load import load_config
from mmcl.config.training import TokenLimit
from mmcl.data.batches.batch import Batch
from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError
from mmcl.training import train
from mmcl.training.build import build_method
from mmcl.training.optimization.micro_batch import micro_batches


def batch_of(lengths, extra=0):
    """Rows with texts of these lengths."""
    rows, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    text = {"input_ids": mask * 7, "attention_mask": mask}
    ids = torch.arange(rows)[:, None]
    extra_texts = {"text": {"features": torch.arange(extra)[:, None]}} if extra else {}
    return Batch(
        {"text": text, "image": {"pixels": torch.arange(rows)[:, None]}},
        ids,
        seeds=ids[:, 0] + 100,
        rows=ids[:, 0],
        extra=extra_texts,
        extra_ids={"text": torch.arange(extra)[:, None]} if extra else {},
        names=[str(row) for row in range(rows)],
    )


def test_rows_are_divided_evenly_and_texts_lose_the_padding_of_other_parts():
    batch = batch_of([2, 5, 3, 9, 1, 1, 1])
    parts = micro_batches(batch, 3, torch.nn.Linear(1, 1))
    assert [part.names for part in parts] == [["0", "1"], ["2", "3"], ["4", "5", "6"]]
    assert [part.inputs["text"]["input_ids"].shape for part in parts] == [(2, 5), (2, 9), (3, 1)]
    for field in ("ids", "seeds", "rows"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))
    assert micro_batches(batch, 7, torch.nn.Linear(1, 1)) == [batch]


def test_parts_are_filled_up_to_so_many_tokens_with_their_padding():
    batch = batch_of([2, 5, 3, 9, 1, 1, 1])
    sizes = [len(part.ids) for part in micro_batches(batch, TokenLimit(tokens=10), torch.nn.Linear(1, 1))]
    assert sizes == [2, 1, 1, 3]  # 2 × 5; 3; 9; 3 × 1
    assert len(micro_batches(batch, TokenLimit(tokens=1), torch.nn.Linear(1, 1))) == 7  # a row is the least
    batch.inputs["text"] = {"features": torch.zeros(7, 2)}
    with pytest.raises(MmclError, match="counts tokens"):
        micro_batches(batch, TokenLimit(tokens=10), torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("lengths", "limit", "sizes"),
    [
        ([2, 5, 3, 9, 1, 1, 1], TokenLimit(tokens=10), [2, 2, 3]),
        ([2] * 21, 2, [2] * 9 + [3]),
        ([2, 2, 9], TokenLimit(tokens=4), [3]),
        ([9], TokenLimit(tokens=4), [1]),
    ],
)
def test_no_row_is_alone_in_batch_normalisation(lengths, limit, sizes):
    found = [len(part.ids) for part in micro_batches(batch_of(lengths), limit, torch.nn.BatchNorm1d(1))]
    assert sorted(found) == sorted(sizes)
    assert min(found) > 1 or len(lengths) == 1
    frozen = torch.nn.BatchNorm1d(1).eval()
    assert len(micro_batches(batch_of(lengths), limit, frozen)) >= len(sizes)


def test_extra_texts_count_where_parts_are_filled_with_tokens():
    """14 texts beside 7 rows: each row brings two of them, which are up to 4 tokens long, to the pass of its own."""
    lengths = [2, 5, 3, 9, 1, 1, 1]
    batch, extra_texts = batch_of(lengths), batch_of([4, 1] * 7)
    batch.extra, batch.extra_ids = {"mined": extra_texts.inputs["text"]}, {"mined": extra_texts.ids}
    parts = micro_batches(batch, TokenLimit(tokens=30), torch.nn.Linear(1, 1))
    assert [len(part.ids) for part in parts] == [2, 1, 1, 2, 1]  # three texts a row: 6 × 5; 3 × 4; 3 × 9; 6 × 4; 3 × 4
    for part in parts:
        assert len(part.extra_ids["mined"]) == 2 * len(part.ids)
        masks = part.inputs["text"]["attention_mask"], part.extra["mined"]["attention_mask"]
        assert 3 * len(part.ids) * max(mask.shape[1] for mask in masks) <= 30
    assert torch.equal(torch.cat([part.extra_ids["mined"] for part in parts]), extra_texts.ids)


def test_anchors_are_padded_by_themselves_and_what_they_are_compared_with_together(tmp_path):
    config = load_config(
        {
            "method": {"name": "simcse"},
            "data": {
                "train": {"source": "sample:shapes", "split": "train"},
                "columns": {"anchor": "text", "positive": "text"},
            },
            "model": {"dim": 8, "text": {"name": "scratch", "layers": 1, "width": 8, "heads": 2}},
        }
    )
    batch = batch_of([2] * 8)
    batch.inputs = {"anchor": batch.inputs["text"], "positive": batch_of([6] * 8).inputs["text"]}
    batch.extra = {"mined": batch_of([3] * 8).inputs["text"]}
    batch.extra_ids = {"mined": batch.ids}
    parts = micro_batches(batch, TokenLimit(tokens=28), build_method(config, tmp_path))
    assert [len(part.ids) for part in parts] == [2, 2, 2, 2]  # 2 × (2 + 2 × 6)


@pytest.mark.parametrize("changed", [False, True])
def test_a_sentence_that_passes_twice_counts_twice(changed, tmp_path):
    config = load_config(
        {
            "method": {"name": "simcse"},
            "data": {"train": {"source": "sample:shapes", "split": "train"}, "columns": {"text": "text"}},
            "model": {"dim": 8, "text": {"name": "scratch", "layers": 1, "width": 8, "heads": 2}},
        }
    )
    batch = batch_of([5] * 8)
    del batch.inputs["image"]
    if changed:
        batch.draws["text"] = [batch.inputs["text"]]
    parts = micro_batches(batch, TokenLimit(tokens=40), build_method(config, tmp_path))
    assert [len(part.ids) for part in parts] == [4, 4]


def test_a_limit_of_tokens_is_refused_before_anything_is_computed_where_features_are_kept(tmp_path, shapes_config):
    overrides = ["training.micro_batch={tokens: 100}", "model.text.frozen=true"]
    with pytest.raises(MmclError, match="counts tokens"):
        train(shapes_config, out=tmp_path / "run", overrides=overrides, show_progress=False)
    assert not (tmp_path / "run").exists()
    train(
        shapes_config,
        out=tmp_path / "run",
        overrides=[*overrides, "text_augmentation.drop=0.1", "training.epochs=0.02", "evaluation={}"],
        show_progress=False,
    )


@pytest.mark.parametrize("extra", [1, 3, 8])
def test_extra_items_are_spread_over_the_parts_and_none_has_a_role_without_items(extra):
    parts = micro_batches(batch_of([1] * 8, extra), 2, torch.nn.Linear(1, 1))
    having = [part for part in parts if part.extra]
    assert len(having) == min(extra, 4)
    assert parts[-1].extra
    for tensors in ([p.extra_ids["text"] for p in having], [p.extra["text"]["features"] for p in having]):
        assert torch.cat(tensors)[:, 0].tolist() == list(range(extra))


@pytest.mark.parametrize(
    ("rows", "limit", "others", "sizes"),
    [
        (12, 6, 4, [3, 3, 3, 3]),
        (11, 6, 4, [2, 3, 3, 3]),
        (9, 9, 4, [2, 2, 2, 3]),
        (6, 3, 3, [2, 2, 2]),  # of 3 and 3, which cannot be halved
        (6, 3, 2, [3, 3]),
        (1, 3, 1, [1]),
    ],
)
def test_no_row_is_alone_in_batch_normalisation_where_another_process_has_more_parts(
    rows, limit, others, sizes, monkeypatch
):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_max", lambda value, device: max(value, others))
    layer = torch.nn.SyncBatchNorm(1)
    found = [len(part.ids) for part in micro_batches(batch_of([2] * rows), limit, layer)]
    assert sorted(found) == sizes


def test_too_few_rows_for_the_parts_of_another_process_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_max", lambda value, device: 4)
    layer = torch.nn.SyncBatchNorm(1)
    message = (
        r"^another process has 4 micro-batches, of which each needs 2 for batch normalisation, and this one 7 rows; "
    )
    with pytest.raises(MmclError, match=message + r"raise training\.micro_batch$"):
        micro_batches(batch_of([2] * 7), 4, layer)
    assert [len(part.ids) for part in micro_batches(batch_of([2] * 7), 4, layer.eval())] == [2, 1, 2, 2]
    with pytest.raises(MmclError, match=r"^another process has 4 micro-batches, and this one 3 rows; raise"):
        micro_batches(batch_of([2] * 3), 4, layer)
