"""Outputs of parts are those of the whole batch; a step knows where it stands."""

from __future__ import annotations

import math

import pytest
import torch

from mmcl.methods import Outputs, Rows, Step


def part(start, stop, extra):
    rows = torch.arange(start, stop)
    vectors = rows[:, None].float().requires_grad_()
    names = {"extra": rows[:extra, None].float() + 100} if extra else {}
    return Outputs(
        {"image": vectors * 2, **names},
        Rows(
            rows[:, None],
            {"extra": rows[:extra, None] + 100} if extra else {},
            {"score": rows.float()},
            {"label": rows - 2**62},
            {"teacher": {"image": rows[:, None].double()}},
        ),
        {"image": rows[:, None].float() * 3},
    )


def test_parts_are_joined_row_by_row_and_extra_items_may_lack_in_all_but_the_last():
    joined = Outputs.cat([part(0, 2, 0), part(2, 5, 2)])
    rows = torch.arange(5)
    assert torch.equal(joined.embeddings["image"], rows[:, None] * 2.0)
    assert joined.embeddings["image"].requires_grad
    assert torch.equal(joined.keys["image"], rows[:, None] * 3.0)
    assert torch.equal(joined.rows.ids[:, 0], rows)
    assert torch.equal(joined.rows.values["score"], rows.float())
    assert torch.equal(joined.rows.labels["label"], rows - 2**62)
    assert torch.equal(joined.rows.references["teacher"]["image"][:, 0], rows.double())
    assert joined.rows.extra_ids["extra"][:, 0].tolist() == joined.embeddings["extra"][:, 0].tolist() == [102, 103]
    assert not joined.detached().embeddings["image"].requires_grad
    alone = joined.gathered()  # one process
    assert torch.equal(alone.embeddings["image"], joined.embeddings["image"])


def test_each_batch_of_a_step_can_be_had_by_itself():
    batches = [part(0, 2, 0), part(2, 4, 0)]
    both = Outputs.of_batches(batches)
    assert [each.rows.ids[:, 0].tolist() for each in both.each()] == [[0, 1], [2, 3]]
    assert both.rows.ids[:, 0].tolist() == [0, 1, 2, 3]
    assert Outputs.of_batches(batches[:1]) is batches[0]
    assert batches[0].each() == (batches[0],)


def test_schedules_run_from_the_first_step_to_the_last():
    for schedule in ("cosine", "linear"):
        values = [getattr(Step(number, 11), schedule)(0.9, 1.0) for number in range(11)]
        assert values[0] == pytest.approx(0.9)
        assert values[5] == pytest.approx(0.95)
        assert values[-1] == 1.0
        assert values == sorted(values)
    assert Step(2, 11).cosine(0.9, 1.0) == pytest.approx(1 - 0.1 * (1 + math.cos(math.pi / 5)) / 2)
    assert Step(0, 1).cosine(0.9, 1.0) == pytest.approx(0.9)
