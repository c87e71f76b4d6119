import ctypes
import resource
from pathlib import Path

import pytest
import torch

from mmcl.runtime.memory import reused_memory

SIZE = 16 << 20  # 64 MiB in float32: 16,384 pages, or 32 large ones
needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone has mallopt")


def fresh_pages(times: int) -> int:
    """Pages that the system had to clear for so many tensors, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(SIZE).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
def test_within_the_block_large_tensors_take_the_pages_of_those_before() -> None:
    outside = fresh_pages(8)
    with reused_memory():
        fresh_pages(1)
        within = fresh_pages(8)
    assert within < outside / 2


@needs_glibc
def test_after_the_block_memory_goes_back_to_the_system() -> None:
    with reused_memory():
        fresh_pages(1)
        kept = resident_bytes()
    assert kept - resident_bytes() > 2 * SIZE  # of 4 · SIZE bytes of the tensor


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
