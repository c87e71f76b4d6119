"""The pairwise sigmoid loss against open_clip's, on one process and on two, and against the equation in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mmcl.losses import sigmoid


def reference(image, text, tau, bias, ids=None, similarity="cosine"):
    """The equation, one pair at a time, in float64 numpy."""

    def sim(a, b):
        if similarity == "cosine":
            return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return a @ b if similarity == "dot" else -np.linalg.norm(a - b)

    total = 0.0
    for i, a in enumerate(image):
        for j, b in enumerate(text):
            if i != j and ids is not None and np.any(ids[i] == ids[j]):
                continue
            z = 1.0 if i == j else -1.0
            total += math.log1p(math.exp(-z * (sim(a, b) / tau + bias)))
    return total / len(image)


def test_value_and_gradients_equal_open_clip():
    from open_clip.loss import SigLipLoss

    torch.manual_seed(0)
    image, text = torch.randn(48, 32), torch.randn(48, 32)
    results = []
    for ours in (True, False):
        a, b = image.clone().requires_grad_(), text.clone().requires_grad_()
        scale, bias = torch.tensor(math.log(10.0), requires_grad=True), torch.tensor(-3.0, requires_grad=True)
        if ours:
            loss = sigmoid(a, b, (-scale).exp(), bias)
        else:
            loss = SigLipLoss()(F.normalize(a, dim=1), F.normalize(b, dim=1), scale.exp(), bias)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad, scale.grad, bias.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


TWO_PROCESSES = """
import importlib.util
import sys
from pathlib import Path
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from mmcl.losses import sigmoid
from mmcl.runtime.distributed import gather_rows, rank, world_size

# The file of the loss alone: the package around it takes many seconds to import.
path = Path(importlib.util.find_spec("open_clip").origin).with_name("loss.py")
spec = importlib.util.spec_from_file_location("loss", path)
open_clip_loss = importlib.util.module_from_spec(spec)
spec.loader.exec_module(open_clip_loss)

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}.meet", rank=int(sys.argv[3]), world_size=2)
data = load_file(sys.argv[1])
shard = slice(rank() * 5, rank() * 5 + 5)
x, y = data.pop("x")[shard], data.pop("y")[shard]

class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
        self.scale, self.bias = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))
    def forward(self, x, y):
        return self.a(x), self.b(y)

def ours(both, a, b):
    return sigmoid(gather_rows(a), gather_rows(b), (-both.scale).exp(), both.bias)

def theirs(both, a, b):
    loss = open_clip_loss.SigLipLoss(rank=rank(), world_size=world_size())
    return loss(F.normalize(a, dim=1), F.normalize(b, dim=1), both.scale.exp(), both.bias)

found = {}
for name, loss_of in {"ours": ours, "theirs": theirs}.items():
    both = Both().double()
    both.load_state_dict(data)
    wrapped = DistributedDataParallel(both)
    loss = loss_of(both, *wrapped(x, y))
    loss.backward()
    value = loss.detach().clone()
    dist.all_reduce(value)  # the mean over processes: theirs is of a process's own images, ours of the global batch
    found |= {f"{name}.{key}": p.grad for key, p in both.named_parameters()} | {f"{name}.loss": value / world_size()}
if rank() == 0:
    save_file(found, sys.argv[2])
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_equal_one_and_open_clip_on_two(tmp_path):
    torch.manual_seed(4)
    towers = torch.nn.ModuleDict({"a": torch.nn.Linear(6, 4), "b": torch.nn.Linear(6, 4)}).double()
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, -1.5))
    x, y = torch.randn(10, 6, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    state = {name: tensor.clone() for name, tensor in towers.state_dict().items()}
    state |= {"scale": scale.detach(), "bias": bias.detach(), "x": x, "y": y}
    save_file(state, tmp_path / "in.safetensors")
    loss = sigmoid(towers["a"](x), towers["b"](y), (-scale).exp(), bias)
    loss.backward()

    files = [tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    commands = [[sys.executable, "-c", TWO_PROCESSES, *files, str(rank)] for rank in range(2)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    got = load_file(files[1])
    alone = {name: p.grad for name, p in towers.named_parameters()}
    alone |= {"scale": scale.grad, "bias": bias.grad, "loss": loss.detach()}
    assert len(got) == 2 * len(alone)
    for name, expected in alone.items():
        torch.testing.assert_close(got[f"ours.{name}"], expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(got[f"theirs.{name}"], expected, rtol=1e-10, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    d=st.integers(2, 7),
    columns=st.integers(0, 2),
    bias=st.floats(-12, 3),
    similarity=st.sampled_from(["cosine", "dot", "euclidean"]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equation_in_float64(n, d, columns, bias, similarity, seed):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(n, d)), rng.normal(size=(n, d))
    ids = rng.integers(0, 4, size=(n, columns)) if columns else None
    given_ids = None if ids is None else torch.tensor(ids[:, 0] if columns == 1 else ids)
    got = sigmoid(torch.tensor(image), torch.tensor(text), 0.5, bias, ids=given_ids, similarity=similarity)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(reference(image, text, 0.5, bias, ids, similarity), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_gradients_of_every_argument_in_float64(similarity):
    torch.manual_seed(1)
    image, text = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tau, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, -2.0))
    ids = torch.tensor([0, 1, 0, 2, 1])

    def loss(image, text, tau, bias):
        return sigmoid(image, text, tau, bias, ids=ids, similarity=similarity)

    assert torch.autograd.gradcheck(loss, (image, text, tau, bias))


def test_rows_that_are_the_same_thing_do_not_push_each_other_away():
    image, text = torch.eye(2), torch.eye(2)
    text.requires_grad_()
    sigmoid(image, text, 0.1, 0.0, ids=torch.tensor([7, 7]), similarity="dot").backward()
    assert torch.equal(text.grad, text.grad.diagonal().diag())
    assert (text.grad.diagonal() < 0).all()  # each is still drawn to its own image


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_smallest_temperature_and_accumulated_in_float32(dtype):
    torch.manual_seed(2)
    image = torch.randn(64, 16).to(dtype).requires_grad_()
    loss = sigmoid(image, -image.detach(), 0.001, -10.0)  # every positive is as wrong as can be: -1000 - 10
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert loss > 1009
    assert torch.isfinite(image.grad).all()


def test_autocast_does_not_lower_the_precision_of_the_loss():
    torch.manual_seed(3)
    image, text = torch.randn(32, 64), torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigmoid(image, text, 0.01, -5.0)
    assert inside.item() == sigmoid(image, text, 0.01, -5.0).item()


def test_the_log_odds_of_a_positive_is_the_best_bias_before_anything_is_learned():
    bias = torch.tensor(-math.log(63.0), dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(64, 8, dtype=torch.float64)  # all similarities are zero
    sigmoid(nothing, nothing, 0.1, bias, similarity="dot").backward()
    assert bias.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"image and text .*\(3, 4\)"):
        sigmoid(torch.randn(3, 4), torch.randn(4, 4), 0.1, -10.0)
    with pytest.raises(ValueError, match="ids must be"):
        sigmoid(torch.randn(3, 4), torch.randn(3, 4), 0.1, -10.0, ids=torch.zeros(2))
    with pytest.raises(ValueError, match="bias must be one number"):
        sigmoid(torch.randn(3, 4), torch.randn(3, 4), 0.1, torch.zeros(3))
    with pytest.raises(ValueError, match="similarity must be"):
        sigmoid(torch.randn(3, 4), torch.randn(3, 4), 0.1, -10.0, similarity="manhattan")
