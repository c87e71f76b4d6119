import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from mmcl.runtime.memory import drop_mapped_pages

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


def resident_kb(path: Path) -> int:
    """Of the pages of a mapped file, as the system counts them."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    places = [place for place, line in enumerate(lines) if line.endswith(f" {path}")]
    rss = [next(line for line in lines[place:] if line.startswith("Rss:")) for place in places]
    return sum(int(line.split()[1]) for line in rss)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone tells what is resident")
def test_pages_of_a_mapped_file_leave_memory_and_are_read_again(tmp_path: Path) -> None:
    path, content = tmp_path / "a file", bytes(range(256)) * 2**14
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        before = resident_kb(path)
        drop_mapped_pages({str(tmp_path / "another")})
        assert resident_kb(path) == before > 3000
        drop_mapped_pages({str(path)})
        assert resident_kb(path) < 100
        assert mapped[:] == content


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone tells what is mapped")
def test_a_private_mapping_that_was_written_to_keeps_its_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**16))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"kept"
        drop_mapped_pages({str(path)})
        assert mapped[:4] == b"kept"
