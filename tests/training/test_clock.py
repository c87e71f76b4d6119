"""Where the time goes: shares against sleeps of known length."""

from __future__ import annotations

import time

import pytest
import torch

from mmcl.training.clock import Clock, _covered


def test_the_shares_are_those_of_the_sleeps(caplog):
    clock = Clock(torch.device("cpu"), every=0.4)
    shares = None
    with caplog.at_level("INFO", logger="mmcl"):
        while shares is None:
            with clock.waiting():
                time.sleep(0.03)
            with clock.step():
                time.sleep(0.07)
            shares = clock.tick()
    assert shares.loader == pytest.approx(0.3, abs=0.05)
    assert shares.device == pytest.approx(0.7, abs=0.05)
    assert shares.communication == 0
    assert "loader 30%" in caplog.text.replace("29%", "30%").replace("31%", "30%")


def test_an_evaluation_can_be_left_out():
    clock = Clock(torch.device("cpu"), every=0.2)
    time.sleep(0.3)
    clock.restart()
    assert clock.tick() is None


def test_overlapping_spans_count_once():
    assert _covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert _covered([]) == 0
