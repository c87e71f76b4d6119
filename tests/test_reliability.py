import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reliability.py"


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
def test_nothing_is_lost_and_nothing_wrong_is_silent_when_commands_are_killed_and_files_damaged(tmp_path):
    command = [sys.executable, SCRIPT, "--trials", "72", "--json", tmp_path / "reliability.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
