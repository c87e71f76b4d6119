"""Computing in a process that was forked from one that had computed; what the hardware multiplies."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
import torch

import mmcl
from mmcl.evaluation import retrieval
from mmcl.losses import Blockwise, info_nce
from mmcl.runtime import device
from mmcl.runtime.errors import MmclError

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture
def here_and_in_a_fork():
    """What a function returns in this process on two threads, and then in one that is forked from it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def both(work):
        here = work()
        receiving, sending = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=lambda: sending.send(work()), daemon=True)
        child.start()
        try:
            assert receiving.poll(60), "the forked process waits for threads that it does not have"
            return here, receiving.recv()
        finally:
            child.kill()
            child.join()

    yield both
    torch.set_num_threads(threads)


def test_a_forked_process_says_once_that_it_computes_on_one_thread(monkeypatch, caplog):
    monkeypatch.setattr(device, "_forked", True)
    device.ready_after_fork(torch.device("cpu"))
    device.ready_after_fork(torch.device("cpu"))
    assert [record.message.split(":")[0] for record in caplog.records] == ["this process was forked"]


def test_a_forked_process_cannot_use_a_gpu_and_is_reported(monkeypatch):
    device.ready_after_fork(torch.device("cuda"))
    monkeypatch.setattr(device, "_forked", True)
    with pytest.raises(MmclError, match=r"cannot compute on cuda.*'spawn'"):
        device.ready_after_fork(torch.device("cuda"))


@forks
@pytest.mark.parametrize("tile", [None, 256])
def test_a_loss_and_its_gradient_are_the_same_in_a_forked_process(here_and_in_a_fork, tile):
    a, b = torch.randn(2, 1024, 64, generator=torch.Generator().manual_seed(0))
    a.requires_grad_()

    def work():
        loss = info_nce(a, b, blockwise=Blockwise(tile))
        return loss.item(), torch.autograd.grad(loss, a)[0].numpy(), torch.get_num_threads()

    here, there = here_and_in_a_fork(work)
    assert there[0] == pytest.approx(here[0], rel=1e-6)
    np.testing.assert_allclose(there[1], here[1], atol=1e-7)
    assert (here[2], there[2]) == (2, 1)


@forks
def test_a_forked_process_builds_searches_and_ranks_as_its_parent_does(here_and_in_a_fork):
    vectors = np.random.default_rng(0).normal(size=(1500, 64)).astype("float32")
    ids, qrels = list(range(1500)), {n: {n: 1} for n in range(1500)}
    known = mmcl.Index.build(vectors)

    def work():
        found = [index.search(vectors[:200], 5)[0].tolist() for index in (mmcl.Index.build(vectors), known)]
        return found, retrieval((ids, vectors), (ids, vectors), qrels, bootstrap=0).metrics["hit@1"]

    here, there = here_and_in_a_fork(work)
    assert there == here
    assert [row[0] for row in there[0][0]] == list(range(200))


@forks
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_a_forked_process_encodes_the_same_vectors(here_and_in_a_fork, backend):
    if backend != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    encoder = mmcl.load("sample:minilm", device="cpu", dtype="float32", backend=backend)
    here, there = here_and_in_a_fork(lambda: encoder.encode([f"text {i} " * 20 for i in range(40)]))
    assert here.shape == (40, 384)
    np.testing.assert_allclose(there, here, atol=1e-5)


@pytest.mark.parametrize("unit", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_auto_is_bfloat16_on_a_cpu_that_has_a_unit_for_it(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert device.resolve_precision("auto", torch.device("cpu")) == "float32"
    monkeypatch.setattr(torch.cpu, unit, lambda: True)
    assert device.resolve_precision("auto", torch.device("cpu")) == "bfloat16"
