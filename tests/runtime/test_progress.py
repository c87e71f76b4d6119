"""Long work says how far it has come: a bar that ends with its rate on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys
import time

import pytest

from mmcl.runtime import progress as module
from mmcl.runtime.progress import duration, log_progress, progress, progress_line, rate
from mmcl.training.logs import Ticker


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch) -> Terminal:
    """What is written to stderr from now on; a fixture would come before pytest puts its own stderr there."""
    for name, value in (("COLUMNS", "80"), ("LINES", "24"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (5_000, 20_000, 5, "tokenize: 5,000/20,000 rows, 1,000 rows/s, 15 s left"),
        (0, 20_000, 31, "tokenize: 0/20,000 rows, 31 s so far"),
        (0, None, 90, "tokenize: 1 min 30 s so far"),
        (7, None, 70, "tokenize: 7 rows, 0.1 rows/s, 1 min 10 s so far"),
        (20_000, 20_000, 0, "tokenize: 20,000/20,000 rows, 0 rows/s, 0 s left"),
    ],
)
def test_a_line_has_count_rate_and_time_left(done, total, seconds, said):
    assert progress_line("tokenize", done, total, "rows", seconds) == said


def test_work_without_a_terminal_speaks_even_while_it_does_not_advance(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.03)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress("tokenize", 100) as advance:
        time.sleep(0.08)
        assert any(message.startswith("tokenize: 0/100 rows, ") for message in caplog.messages)
        advance(50)
        time.sleep(0.08)
    assert any(message.startswith("tokenize: 50/100 rows, ") for message in caplog.messages)
    count = len(caplog.messages)
    with progress("tokenize", 100, show=False):
        time.sleep(0.05)
    assert len(caplog.messages) == count
    with pytest.raises(ValueError, match="stop"), log_progress("x", None):
        raise ValueError("stop")


def test_a_bar_ends_full_with_the_rate_of_everything_within_80_columns(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with progress("image features", 2_000_000, "images") as advance:
        time.sleep(0.02)
        advance(2_000_000)
    last = [part for part in terminal.getvalue().replace("\r", "\n").splitlines() if "images/s" in part][-1]
    shown = _plain(last)
    assert "2000000/2000000" in shown
    assert " 0 images/s" not in shown
    assert len(shown) <= 80
    assert "…" not in shown
    assert "━━━━" in shown


def test_step_bar_and_time_left_stay_at_80_columns_whatever_is_logged(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    ticker = Ticker(100_000, 0, show=None)
    ticker.show(1_234, {f"a metric of number {number}": 1.5 for number in range(9)})
    ticker.close()
    lines = [_plain(part) for part in terminal.getvalue().replace("\r", "\n").splitlines()]
    assert max(map(len, lines)) <= 80
    assert any("1234/100000" in part and "ETA" in part and "━" in part for part in lines)
    assert any(part.startswith("a metric of number 0 1.5  a metric") for part in lines)


def test_steps_between_two_lines_of_metrics_are_said_too(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("mmcl.training.logs.LONGEST_SILENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Ticker(10, 0, show=None).show(5)
    assert caplog.messages[0].startswith("step 5/10")
    Ticker(10, 0, show=False).show(5)
    assert len(caplog.messages) == 1


def test_lines_have_the_metrics_of_a_step_once(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("mmcl.training.logs.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("mmcl.training.logs.LONGEST_SILENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    ticker = Ticker(10, 0, show=None)
    for step, values in ((1, None), (2, {"loss": 1.5}), (3, None), (4, None), (5, {"loss": 1.25})):
        ticker.show(step, values)
    shown = [line.split("  ETA ")[0] for line in caplog.messages]
    assert shown == ["step 1/10", "step 2/10  loss 1.5", "step 3/10", "step 4/10", "step 5/10  loss 1.25"]


def test_rates_and_durations():
    assert [rate(done, 2) for done in (0, 1, 30, 24_690)] == ["0", "0.5", "15", "12,345"]
    said = ["0 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]
    assert [duration(seconds) for seconds in (0.4, 59.6, 3_599, 7_300)] == said


def _plain(text: str) -> str:
    """Without the terminal's own sequences."""
    from rich.text import Text

    return Text.from_ansi(text).plain.rstrip()
