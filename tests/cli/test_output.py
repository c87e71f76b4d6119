"""Numbers as JSON, where the user says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmcl.cli.output import print_table
from mmcl.retrieval import Index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    Index.build(np.eye(3, dtype=np.float32)).save(folder)
    return folder


def test_json_on_stdout_stands_there_alone(mmcl_, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = mmcl_("index", "info", index, "--json", "-")
    assert code == 0
    assert json.loads(out)["count"] == 3
    assert "similarity" in err
    assert not list(tmp_path.iterdir())
    assert "similarity" in mmcl_("index", "info", index)[1]


def test_a_file_that_could_not_be_written_is_refused_before_anything_is_computed(mmcl_, index, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = mmcl_("index", "info", index, "--json", tmp_path / "file" / "x.json")
    assert (code, out) == (2, "")
    assert "nothing can be written" in err


def test_a_folder_is_refused_before_anything_is_computed(mmcl_, index, tmp_path):
    code, out, err = mmcl_("index", "info", index, "--json", tmp_path)
    assert (code, out) == (2, "")
    assert "is a folder" in err


def test_cells_stand_as_they_are(capsys):
    print_table([":cat:", "[b]n[/b]"], [["rows.csv:train: a :smile:", 1]], title=":dog: [i]x[/i]")
    out = capsys.readouterr().out
    assert all(part in out for part in (":cat:", "[b]n[/b]", "rows.csv:train: a :smile:", ":dog: [i]x[/i]"))
