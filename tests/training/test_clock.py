"""Where the time goes: shares and rates against sleeps of known length."""

from __future__ import annotations

import pytest
import torch

from mmcl.training import clock as module
from mmcl.training.clock import Clock, _covered


class Time:
    """Stands in for the module of that name: its seconds pass in sleep alone."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def test_the_shares_are_those_of_the_sleeps(caplog, time):
    clock = Clock(torch.device("cpu"), every=0.4)
    shares = None
    with caplog.at_level("INFO", logger="mmcl"):
        while shares is None:
            with clock.waiting():
                time.sleep(0.03)
            with clock.step():
                time.sleep(0.07)
            shares = clock.tick()
    assert shares == pytest.approx((0.3, 0.0, 0.7))
    assert "loader 30%, cpu 70%" in caplog.text


def test_an_evaluation_can_be_left_out_and_what_was_counted_stays(time):
    clock = Clock(torch.device("cpu"), every=0.2)
    for _ in range(2):
        with clock.step():
            time.sleep(0.1)
        with clock.excluded():
            time.sleep(0.3)
    assert clock.rate() == pytest.approx(10)
    assert clock.tick() == pytest.approx((0.0, 0.0, 1.0))
    with clock.excluded():
        time.sleep(0.3)
    assert clock.tick() is None


def test_the_rate_is_that_of_the_steps_since_it_was_asked_for(time):
    clock = Clock(torch.device("cpu"))
    for seconds in (0.05, 0.1):
        for _ in range(4):
            with clock.step():
                time.sleep(seconds)
        assert clock.rate() == pytest.approx(1 / seconds)


def test_overlapping_spans_count_once():
    assert _covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert _covered([]) == 0
