"""The command line, run in the tests' own process."""

from __future__ import annotations

import sys

import pytest

from mmcl.cli.app import main


@pytest.fixture
def mmcl_(monkeypatch, capsys):
    """Run the command line in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmcl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run
