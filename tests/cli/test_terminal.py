"""What stands on a terminal: a pseudo-terminal of 80 columns, and of fewer."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from types import SimpleNamespace

import pytest

import mmcl.cli
from mmcl.cli.app import main
from mmcl.cli.evaluate.scores import print_comparison
from mmcl.cli.output import print_table, say
from mmcl.evaluation.compare import Comparison, Difference
from mmcl.runtime.errors import MmclError
from mmcl.runtime.printable import fitted

WORDS = "a sentence of many words that go on beyond the edge of the terminal, where it breaks them; /a/path/of/its/own"


STYLE = r"\x1b\[[\d;]*m"


@pytest.fixture
def terminal(monkeypatch):
    """Have stdout and stderr be a terminal of so many columns; gives what reads its lines."""
    controlling, controlled = pty.openpty()
    stream = os.fdopen(controlled, "w")

    def resized(columns):
        fcntl.ioctl(controlled, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "__stdout__", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)

        def lines():
            stream.flush()
            read = b""
            while select.select([controlling], [], [], 0)[0]:
                read += os.read(controlling, 1 << 16)
            return re.sub(STYLE, "", read.decode()).split("\r\n")

        return lines

    yield resized
    stream.close()
    os.close(controlling)


@pytest.mark.parametrize(("columns", "fits"), [(80, 80), (40, 40), (12, 19), (0, len(WORDS))])
def test_lines_break_between_words(terminal, columns, fits):
    lines = terminal(columns)
    say(WORDS)
    shown = lines()
    assert max(map(len, shown)) <= fits
    assert " ".join(shown).split() == WORDS.split()


def test_lines_for_a_file_stay_complete(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert fitted(WORDS, file) == WORDS


def test_the_line_of_an_error_breaks_between_words(terminal, monkeypatch):
    def fails(*_, **__):
        raise MmclError(WORDS)

    lines = terminal(80)
    monkeypatch.setattr("mmcl.cli.config.json_", SimpleNamespace(dumps=fails))
    monkeypatch.setattr(sys, "argv", ["mmcl", "config", "schema"])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = lines()
    assert stopped.value.code == 2
    assert " ".join(shown).split() == f"error: {WORDS}".split()
    assert max(map(len, shown)) <= 80


def test_an_interruption_stands_where_the_terminal_echoed_the_key(terminal, monkeypatch):
    def fails(*_, **__):
        raise KeyboardInterrupt

    lines = terminal(80)
    monkeypatch.setattr("mmcl.cli.config.json_", SimpleNamespace(dumps=fails))
    monkeypatch.setattr(sys, "argv", ["mmcl", "config", "schema"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert lines()[0] == "\rinterrupted; what is on disk is complete"


def _compared(*names):
    row = Difference(0.135, 0.68, 0.545, 0.5, 0.59, 0.0001, 0.0006, 400, 400)
    return Comparison(dict.fromkeys(names, row), 10_000)


@pytest.mark.parametrize("cutoff", [1, 10, 100])
def test_a_comparison_fits_on_a_terminal(terminal, cutoff):
    lines = terminal(80)
    ways, metrics = ("image_to_text", "text_to_image"), (f"recall@{cutoff}", "mrr")
    print_comparison(_compared(*(f"{way}/{metric}" for way in ways for metric in metrics)), "runs/a", "runs/b")
    shown = lines()
    assert max(map(len, shown)) <= 80
    assert [line for line in shown if line in ways] == list(ways)
    rows = [line.split() for line in shown if line.split()[:1] in ([name] for name in metrics)]
    numbers = ["0.1350", "0.6800", "+0.5450", "+0.5000", "–", "+0.5900", "0.0001", "0.0006", "B"]
    assert rows == [[metric, *numbers] for _ in ways for metric in metrics]


@pytest.mark.parametrize("columns", [10, 20, 40])
def test_a_number_is_never_broken(terminal, columns):
    lines = terminal(columns)
    print_table(["name", "first", "second"], [["a caption of words", 0.123456, "+1,234.5678 – +2,345.6789"]])
    shown = "\n".join(lines())
    assert "0.1235" in shown
    assert "+1,234.5678 – +2,345.6789" in shown


def test_a_table_of_words_is_as_wide_as_the_terminal_and_keeps_its_distance(terminal):
    lines = terminal(80)
    print_table(["rank", "score", "id", "label"], [[1, 0.5, f"/a/path/{'x' * 90}.png", WORDS]])
    shown = lines()
    assert max(map(len, shown)) <= 80
    assert shown[1].startswith(" rank    score   id")


def test_samples_are_listed_with_every_address_of_their_terms_in_one_piece(terminal, monkeypatch):
    from mmcl.data.samples import SAMPLES

    lines = terminal(80)
    monkeypatch.setattr(sys, "argv", ["mmcl", "data", "list"])
    with pytest.raises(SystemExit):
        main()
    shown = lines()
    assert max(map(len, shown)) <= 80
    addresses = [word.strip("().") for sample in SAMPLES.values() for word in sample.terms.split() if "://" in word]
    assert addresses
    assert all(any(address in line for line in shown) for address in addresses)
    assert all(f"terms of {name}:" in "\n".join(shown) for name in SAMPLES)


def test_an_interruption_while_the_command_line_is_imported_is_a_line(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "mmcl.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "mmcl.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        mmcl.cli.main()
    assert (stopped.value.code, capsys.readouterr().err) == (130, "\rinterrupted\n")
