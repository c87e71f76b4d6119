"""Side by side: alternate the contenders, take medians, print a table, write JSON beside the script."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNITS = ("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
"""Instructions that products are fast by, as Linux calls them."""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = next((line.split() for line in _cpuinfo() if line.startswith("flags")), [])
    return {
        "cpu": names[0] if names else platform.processor(),
        "units": [unit for unit in UNITS if unit in flags],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def alternate(contenders: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median wall seconds of each; every round runs all of them, so that a slow moment of the machine hits each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(script: str | Path, rows: list[dict[str, Any]], **sizes: Any) -> None:
    """Print the rows as a table and write them, with sizes and machine, to ``SCRIPT.json``."""
    write(script, rows, **sizes)
    show(rows)


def write(script: str | Path, rows: list[dict[str, Any]], **sizes: Any) -> None:
    """Write the rows, with sizes and machine, to ``SCRIPT.json``; again and again where a script may be cut off."""
    result = {"machine": machine(), **sizes, "rows": rows}
    Path(script).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *[[_cell(row.get(name, "")) for name in columns] for row in rows]]
    widths = [max(len(row[number]) for row in cells) for number in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
