"""Collectives on two processes, and the errors of a lost one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmcl.runtime import distributed
from mmcl.runtime.errors import MmclError

COLLECTIVES = """
import sys
import torch
import torch.distributed as dist
from mmcl.runtime import distributed

torch.set_num_threads(1)
rank, cpu = int(sys.argv[1]), torch.device("cpu")
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
assert distributed.all_gather_ints([rank, 7], cpu) == [[0, 7], [1, 7]]
assert distributed.row_counts(3 + rank, cpu) == [3, 4]
assert distributed.gather_lists([["a", "b"], ["c"]][rank]) == ["a", "b", "c"]
assert [distributed.broadcast_bool(rank == source, cpu) for source in (0, 1)] == [True, False]
assert [distributed.all_reduce_max(value, cpu) for value in (rank, -rank)] == [1, 0]
layer = torch.nn.BatchNorm1d(3)
for buffer in layer.buffers():
    buffer.fill_(5 + rank)
distributed.broadcast_buffers(layer)
assert all((buffer == 5).all() for buffer in layer.buffers())
tensors = [torch.full((2,), 3.0 * rank), torch.tensor(4.0)]
distributed.all_reduce_mean(tensors)
assert [tensor.tolist() for tensor in tensors] == [[1.5, 1.5], 4.0]

shard = torch.full((1 + rank, 2), float(rank), requires_grad=True)
rows = distributed.gather_rows(shard)
assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
(rows * torch.arange(3.0)[:, None]).sum().backward()  # of the rows of all; twice its slice, as DDP averages over two
assert shard.grad.tolist() == ([[0.0, 0.0]] if rank == 0 else [[2.0, 2.0], [4.0, 4.0]])
views = distributed.gather_views({"a": shard.detach(), "b": torch.ones(0 if rank else 2)})
assert {name: len(view) for name, view in views.items()} == {"a": 3, "b": 2}
distributed.barrier()
dist.destroy_process_group()
"""


def test_collectives_on_two_processes(tmp_path):
    commands = [[sys.executable, "-c", COLLECTIVES, str(rank), tmp_path / "store"] for rank in range(2)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors


def test_a_timeout_of_gloo_becomes_an_error_that_names_the_setting(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    timeout = "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation to complete"
    message = r"no answer in time.*training\.timeout.*; look there$"
    with pytest.raises(MmclError, match=message), distributed.translate_comm_errors(lambda: "look there"):
        raise RuntimeError(timeout)


def test_other_errors_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="shapes do not fit"), distributed.translate_comm_errors(lambda: ""):
        raise RuntimeError("shapes do not fit")
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    with pytest.raises(RuntimeError, match="gloo"), distributed.translate_comm_errors(lambda: ""):
        raise RuntimeError("[gloo/transport] of another group")
