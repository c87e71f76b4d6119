"""mmcl data: what the check prints and writes."""

from __future__ import annotations

import json
import re

from typer.testing import CliRunner

from mmcl.cli.data import app


def test_check_prints_a_table_and_advice_and_writes_every_number(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\na,a dog\nb,a dog\nc,\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json")])
    assert result.exit_code == 0
    assert re.search(r"rows without a caption +1: c", result.stdout)
    assert "1 (50.00%) captions repeat another" in result.stdout
    assert "there is no 'image' to read; name one of id, text with --image" in result.stdout
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["captions"]["most_frequent"] == [{"text": "a dog", "count": 2}]
    assert len(written["advice"]) == 2
