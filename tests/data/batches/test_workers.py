"""Processes that prepare batches: what they need of the system is asked for before they start."""

from __future__ import annotations

import resource

import pytest

from mmcl.data.batches import workers
from mmcl.data.batches.workers import by_workers, require_open_files
from mmcl.runtime.errors import MmclError


@pytest.mark.parametrize(
    ("limits", "raised"),
    [((1024, 4096), None), ((100, 4096), 288), ((100, 288), 288), ((20, resource.RLIM_INFINITY), 288)],
)
def test_the_limit_of_open_files_is_raised_as_far_as_batches_need_it(monkeypatch, limits, raised):
    asked = []
    monkeypatch.setattr(workers.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(workers.resource, "setrlimit", lambda _, new: asked.append(new))
    require_open_files(4, 2)
    assert asked == ([(raised, limits[1])] if raised else [])


def test_too_few_open_files_are_one_line_instead_of_a_loop_that_waits_for_ever(monkeypatch):
    monkeypatch.setattr(workers.resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(MmclError, match=r"data\.workers: 4 .* about 288 open files, and the system allows 64; lower"):
        by_workers(lambda number: number, [1], 4, 2, lambda: None)
