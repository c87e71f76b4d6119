"""Computing in a process that was forked from one that had computed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mmcl.runtime import device
from mmcl.runtime.errors import MmclError

ENCODE_FORK_ENCODE = """
import multiprocessing, torch, mmcl
encoder = mmcl.load("sample:minilm", device="cpu", dtype="float32")
texts = [f"text {i} " * 20 for i in range(40)]
torch.set_num_threads(2)
vectors = encoder.encode(texts)
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=lambda: queue.put(abs(encoder.encode(texts) - vectors).max()), daemon=True).start()
assert queue.get(timeout=60) < 1e-5
"""

SEARCH_FORK_SEARCH = """
import multiprocessing, numpy as np, torch, mmcl
from mmcl.evaluation import retrieval
torch.set_num_threads(2)
vectors = np.random.default_rng(0).normal(size=(3000, 64)).astype("float32")
ids, qrels = list(range(3000)), {n: {n: 1} for n in range(3000)}

def work():
    built = mmcl.Index.build(vectors)
    found = [index.search(vectors[:200], 5)[0].tolist() for index in (built, *known)]
    return found[0], found[-1], retrieval((ids, vectors), (ids, vectors), qrels, bootstrap=0).metrics["hit@1"]

known = [mmcl.Index.build(vectors)]
expected = work()
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=lambda: queue.put(work()), daemon=True).start()
assert queue.get(timeout=60) == expected
"""


def test_a_forked_process_computes_on_one_thread_and_says_so_once(monkeypatch, caplog):
    threads = torch.get_num_threads()
    monkeypatch.setattr(device, "_imported_by", os.getpid() + 1)
    try:
        device.ready_after_fork(torch.device("cpu"))
        device.ready_after_fork(torch.device("cpu"))
        assert torch.get_num_threads() == 1
        assert [record.message.split(":")[0] for record in caplog.records] == ["this process was forked"]
    finally:
        torch.set_num_threads(threads)


def test_a_forked_process_cannot_use_a_gpu_and_is_told(monkeypatch):
    device.ready_after_fork(torch.device("cuda"))
    monkeypatch.setattr(device, "_imported_by", os.getpid() + 1)
    with pytest.raises(MmclError, match=r"cannot compute on cuda.*'spawn'"):
        device.ready_after_fork(torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_search_fork_search_and_rank_end():
    subprocess.run([sys.executable, "-c", SEARCH_FORK_SEARCH], check=True, timeout=180)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_encode_fork_encode_ends_with_the_same_vectors():
    subprocess.run([sys.executable, "-c", ENCODE_FORK_ENCODE], check=True, timeout=180)
