"""Losses of a batch that lies on several processes against the same batch on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROCESSES = """
import sys
from unittest.mock import patch
import pytest
import torch
import torch.distributed as dist
from mmcl.losses import Blockwise, Guide, Negatives, Positives, batch_accuracy, info_nce, sigmoid

world, rank, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
counts = {2: (5, 8), 4: (4, 0, 7, 3)}[world]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
torch.manual_seed(0)
torch.set_num_threads(1)
N, M, start = sum(counts), 2 * sum(counts), sum(counts[:rank])
rows, wrong = slice(start, start + counts[rank]), slice(2 * start, 2 * (start + counts[rank]))
q, k, n = (torch.randn(size, 6, dtype=torch.float64) for size in (N, N, M))
ids, key_ids, negative_ids = (torch.randint(12, (size, 2)) for size in (N, N, M))
group, key_group, negative_group = (torch.randint(7, (size,)) for size in (N, N, M))
owner = torch.randint(N, (M,))
for first, count in zip([sum(counts[:r]) for r in range(world)], counts):  # owners are of the same process
    owner[2 * first : 2 * (first + count)] = first + owner[2 * first : 2 * (first + count)] % max(count, 1)
by_guide = [torch.randn(size, 3, dtype=torch.float64) for size in (N, N, M)]

def contrast(q, k, n, tau, bias, own, **where):
    part = (rows, wrong) if own else (slice(None), slice(None))
    a, b = part
    first = start if own else 0
    masks = {"ids": (ids[a], key_ids[a])}
    hard = {"negatives": Negatives(n, negative_ids[b], owner[b] - first, weight=2.0)}
    guide = {"guide": Guide(by_guide[0][a], by_guide[1][a], by_guide[2][b])}
    yield info_nce(q, k, tau, **where)
    yield info_nce(q, k, tau, similarity="euclidean", symmetric=False, **masks, **where)
    yield info_nce(q, k, tau, **masks, **hard, **where)
    yield info_nce(q, k, tau, **masks, **hard, **guide, label_smoothing=0.1, **where)
    yield sigmoid(q, k, tau, bias, ids=ids[a], **where)
    several = {"positives": Positives(group[a], key_group[a]), "label_smoothing": 0.1}
    yield info_nce(q, k, tau, **several, **masks, **hard, **where)
    yield info_nce(q, n, tau, positives=Positives(group[a], negative_group[b], compete=False), **where)
    yield info_nce(q, None, tau, positives=Positives(group[a]), similarity="euclidean", **where)
    with torch.no_grad():
        wins = batch_accuracy(q, k, **masks, **where)
    yield q.sum() * 0 + wins

def run(own, **where):
    parts = (rows, rows, wrong) if own else (slice(None),) * 3
    found = []
    leaves = [x[part].clone().requires_grad_() for x, part in zip((q, k, n), parts)]
    leaves += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, -1.0)]
    for loss in contrast(*leaves, own, **where):
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.append([loss.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves))])
    return found

alone = run(False, blockwise=Blockwise(None))
for where in (Blockwise(None, "gather"), Blockwise(3, "gather"), Blockwise(3, "ring"), Blockwise(None, "ring"),
              Blockwise(across="ring")):
    for case, (expected, got) in enumerate(zip(alone, run(True, blockwise=where), strict=True)):
        for at in (4, 5):  # temperature and bias: data parallelism averages them
            dist.all_reduce(got[at])
        # Embeddings: W times this process's share, since gradients of parameters are averaged.
        given = [got[0], *(grad / world for grad in got[1:])]
        wanted = [expected[0], expected[1][rows], expected[2][rows], expected[3][wrong], *expected[4:]]
        for name, a, b in zip(("loss", "query", "key", "negatives", "temperature", "bias"), given, wanted, strict=True):
            message = lambda text: f"{where}, case {case}, {name}: {text}"
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13, msg=message)

# Only the last process has keys so long that an exponential of their logits has no value in float32.
far = k.clone()
far[-3:] *= 60
expected = info_nce(q, far, 0.2, similarity="dot", blockwise=Blockwise(None))
for across in ("gather", "ring"):
    got = info_nce(q[rows].float(), far[rows].float(), 0.2, similarity="dot", blockwise=Blockwise(3, across))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)

# What only some processes ask for is for all to know, or they wait for each other forever.
for across in ("gather", "ring"):
    for learns in range(3):  # query, key, negatives: a different one on process 0
        leaves = [x[part].clone() for x, part in zip((q, k, n), (rows, rows, wrong))]
        leaves[0].requires_grad_()
        leaves[learns].requires_grad_(rank == 0 or learns == 0)
        tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        info_nce(*leaves[:2], tau, negatives=Negatives(leaves[2]), blockwise=Blockwise(3, across)).backward()
        assert (leaves[learns].grad is not None) == (rank == 0 or learns == 0)
    leaves = [x[part].clone().requires_grad_() for x, part in zip((q, k, n), (rows, rows, wrong))]
    with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
        info_nce(*leaves[:2], 0.2, negatives=Negatives(leaves[2]), blockwise=Blockwise(3, across)).backward()
    sizes = [call for call in reduce.call_args_list if call.args[0].dtype == torch.int64]
    assert len(sizes) == 1  # of everything at once, since the processes wait for each other
    for options in ({"ids": ids[rows]}, {"negatives": Negatives(n[wrong])}):
        with pytest.raises(ValueError, match="same arguments"):
            info_nce(q[rows], k[rows], 0.2, blockwise=Blockwise(across=across), **(options if rank else {}))
    with pytest.raises(ValueError, match="no rows"):
        info_nce(q[:0], k[:0], 0.2, blockwise=Blockwise(across=across))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_with_unequal_rows_equal_one(world: int, tmp_path: Path) -> None:
    """For loss and gradients, of each exchange, in tiles and not, with every rule; of four one has no rows at all."""
    commands = [[sys.executable, "-c", PROCESSES, str(world), str(rank), tmp_path / "store"] for rank in range(world)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
