import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from pathlib import Path

import torch

from mmcl.runtime.memory import reused_memory

SIZE = 16 << 20  # 64 MiB in float32: 16,384 pages


def fresh_pages(times):  # that the system had to clear for so many tensors, one after the other
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(SIZE).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


before = fresh_pages(8)
with reused_memory():
    fresh_pages(1)
    within = fresh_pages(8)
    kept = resident_bytes()
print(before, within, (kept - resident_bytes()) / (4 * SIZE))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone has mallopt")
def test_within_the_block_large_tensors_take_the_pages_of_those_before() -> None:
    """In a process of its own, whose heap has no holes yet."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    before, within, given_back = map(float, run.stdout.split())
    assert within < before / 2
    assert given_back > 0.5  # of a tensor, when the block ends
