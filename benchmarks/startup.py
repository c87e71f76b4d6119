"""How long does a user wait for `import mmcl` and for `mmcl --help`?

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys

from measure import alternate, report

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import mmcl": [sys.executable, "-c", "import mmcl"],
    "mmcl --help": [sys.executable, "-m", "mmcl", "--help"],
    "import open_clip": [sys.executable, "-c", "import open_clip"],
}


def main() -> None:
    runs = {
        name: lambda command=command: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        for name, command in COMMANDS.items()
    }
    seconds = alternate(runs, rounds=3)
    report(__file__, [{"command": name, "seconds": value} for name, value in seconds.items()])


if __name__ == "__main__":
    main()
