"""Gradient caching against one graph over the same micro-batches, and against the plain step."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from mmcl.config.load import load_config
from mmcl.config.training import TrainingConfig
from mmcl.methods import Outputs, Step
from mmcl.runtime.products import batched_attention
from mmcl.training.build import build_method
from mmcl.training.optimization.step import TrainStep

from ..processes import launch
from .test_micro_batch import batch_of

COMMON = '''
import copy, itertools, os, sys
from pathlib import Path
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
from mmcl.config.load import load_config
from mmcl.runtime import distributed, sharding
from mmcl.runtime.products import batched_attention, fast_products
from mmcl.training.optimization.batch_norm import prepare_batch_norm
from mmcl.methods import Outputs, Step
from mmcl.training.build import build_method
from mmcl.data.batches.feed import open_feed
from mmcl.training.optimization.micro_batch import micro_batches
from mmcl.training.optimization.step import TrainStep, parallel_method

runs = itertools.count()
STEP = Step(0, 1)
CPU = torch.device("cpu")
FOLDER = Path(sys.argv[1])
WORLD, RANK = (int(os.environ.get(name, alone)) for name, alone in (("WORLD_SIZE", 1), ("RANK", 0)))
if WORLD > 1:
    torch.distributed.init_process_group("gloo")

TEXT = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "tokenizer": {"vocab_size": 80}, "dropout": 0.2}
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "drop_path_rate": 0.3}
CLIP = {
    "method": {"name": "clip", "extra_texts": 6},
    "data": {"train": {"source": "sample:shapes", "split": "train"}, "image": {"size": 32}},
    "model": {
        "dim": 8,
        "image": {"name": "timm:vit_tiny_patch16_224", "args": VIT, "patch_dropout": 0.25},
        "text": TEXT,
    },
    "augmentation": {"crop_scale": [0.8, 1.0], "brightness": 0.2},
    "training": {"batch_size": 20, "clip_grad": None, "precision": "float32"},
}
SIMCSE = {
    "method": {"name": "simcse", "training_head": True},
    "data": {"train": {"source": str(FOLDER / "rows.jsonl")}, "columns": {"text": "text"}},
    "model": {"dim": 8, "text": TEXT},
    "training": {"batch_size": 20, "clip_grad": None, "precision": "float32"},
}
# Two passes of one tower a step, hidden tokens to predict, weights of rows: what a method can have besides.
PAIRS = {
    **SIMCSE,
    "method": {"name": "simcse", "training_head": True, "mlm": {"weight": 0.3}},
    "data": {
        "train": {"source": str(FOLDER / "rows.jsonl")},
        "columns": {"anchor": "text", "positive": "positive", "negative": "negative"},
    },
}
STILL = ["model.text.dropout=0"]
STILL_CLIP = [*STILL, "model.image.patch_dropout=0", "model.image.args.drop_path_rate=0"]


def batches_and_method(config, overrides=(), count=2):
    config, folder = load_config(config, overrides), FOLDER / str(next(runs))
    folder.mkdir(exist_ok=True)
    method = build_method(config, folder).double()
    prepare_batch_norm(method, config.training, CPU)
    source, options = config.data.train, {"augmented": True, "device": CPU, "show_progress": False}
    feed = open_feed([source], method.reading, config, folder, **options)
    method.train()
    batches = feed.batches(0, count)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return config.training, method, taken


def train_step(method, settings, lr=0.1):
    wrapped = parallel_method(method, settings, CPU)
    optimizer = torch.optim.SGD(method.parameters(), lr=lr)
    return TrainStep(method, wrapped, optimizer, settings, CPU, "float32", None)


def one_graph(method, groups, lr=0.1):
    """One step of gradient descent by autograd alone, over the mean loss of groups of micro-batches."""
    recorded = []
    for parts in groups:
        with fast_products(), batched_attention(CPU, 0):
            outputs = Outputs.cat([method.outputs(part) for part in parts])
        outputs = method.project(outputs if method.across else outputs.gathered())
        loss = method.loss(outputs, STEP)
        (loss.value / len(groups)).backward()
        recorded.append(outputs.detached())
    learned = [parameter for parameter in method.parameters() if parameter.grad is not None]
    distributed.all_reduce_mean([parameter.grad for parameter in learned])
    with torch.no_grad():
        for parameter in learned:
            parameter.add_(parameter.grad, alpha=-lr)
            parameter.grad = None
    method.after_update(Outputs.of_batches(recorded), STEP)
    return loss.value.item()


def same_state(method, other, close=None):
    expected = other.state_dict()
    for name, tensor in method.state_dict().items():
        tensor, wanted = sharding.full_tensor(tensor), sharding.full_tensor(expected[name])
        if close is None:
            assert torch.equal(tensor, wanted), (name, (tensor - wanted).abs().max())
        else:
            torch.testing.assert_close(tensor, wanted, rtol=close, atol=close, msg=lambda text: f"{name}: {text}")
'''

BIT_FOR_BIT = (
    COMMON
    + """
for kind, overrides in (
    (CLIP, ["training.micro_batch=4"]),
    (CLIP, ["training.micro_batch.tokens=16"]),
    (SIMCSE, ["training.micro_batch=3"]),
):
    settings, method, batches = batches_and_method(kind, overrides)
    other = copy.deepcopy(method)
    step = train_step(method, settings)
    counts = []
    if WORLD > 1:
        def hook(state, bucket):
            counts.append(bucket.is_last())
            return allreduce_hook(None, bucket)
        step.wrapped.register_comm_hook(None, hook)
    for number, batch in enumerate(batches):
        parts = micro_batches(batch, settings.micro_batch, method)
        assert len(parts) > 1
        torch.manual_seed(10 + 2 * number + RANK)
        result = step([batch], Step(number, 99), 0.1)
        after = torch.get_rng_state()
        torch.manual_seed(10 + 2 * number + RANK)
        loss = one_graph(other, [parts])
        assert torch.equal(torch.get_rng_state(), after), "the next step draws the same numbers"
        assert result.loss == loss, (result.loss, loss)
        same_state(method, other)
        ids = batch.ids if method.across else distributed.gather_rows(batch.ids)
        assert torch.equal(result.outputs.rows.ids, ids)
        assert method.metrics(result.outputs).keys() >= {"accuracy"}
    assert sum(counts) == (len(batches) if WORLD > 1 else 0), "one synchronisation a step"

# Accumulated batches meet once as well.
settings, method, batches = batches_and_method(CLIP, ["training.micro_batch=4", "training.accumulate=2"])
other = copy.deepcopy(method)
step = train_step(method, settings)
counts = []
if WORLD > 1:
    step.wrapped.register_comm_hook(None, hook)
torch.manual_seed(RANK)
step(batches, STEP, 0.1)
torch.manual_seed(RANK)
one_graph(other, [micro_batches(batch, settings.micro_batch, method) for batch in batches])
same_state(method, other, close=1e-12)
assert sum(counts) == (WORLD > 1)
"""
)

PLAIN = """
# Without dropout the parts do not matter, nor does who holds which: equal to the plain step.
for kind, overrides in ((CLIP, STILL_CLIP), (PAIRS, STILL)):
    for parallel in ("ddp", "fsdp") if WORLD > 1 else ("ddp",):
        many = ["training.micro_batch=3", f"training.parallel={parallel}"]
        if parallel == "fsdp":
            many = ["training.micro_batch.tokens=24", many[1], "training.exchange=ring"]
            if kind is CLIP:  # two on one process and one on the other: some parts have further texts, others have none
                many.append("method.extra_texts=3")
        settings, method, batches = batches_and_method(kind, [*overrides, *many])
        other = copy.deepcopy(method)
        cached = train_step(method, settings)
        plain = train_step(other, settings.model_copy(update={"micro_batch": None, "parallel": "ddp"}))
        for number, batch in enumerate(batches):
            got, expected = (each([batch], Step(number, 99), 0.1) for each in (cached, plain))
            assert abs(got.loss - expected.loss) < 1e-10 and abs(got.norm - expected.norm) < 1e-10
            assert got.parts.keys() == expected.parts.keys()
            for name, view in expected.outputs.embeddings.items():
                torch.testing.assert_close(got.outputs.embeddings[name], view, rtol=1e-10, atol=1e-10)
        same_state(method, other, close=1e-10)
"""


@pytest.fixture
def folder(tmp_path):
    """With texts of unequal length."""
    nouns, verbs = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits", "hides")
    pairs = [(noun, verb) for noun in nouns for verb in verbs]
    rows = [
        {"text": f"a {n} {v}" + " and waits" * (i % 3), "positive": f"the {n} {v}", "negative": f"no {n} {v} here"}
        for i, (n, v) in enumerate(pairs)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("processes", [1, 2])
def test_equals_one_graph_bit_for_bit_and_the_plain_step_where_nothing_is_random(folder, processes):
    """In float64; one graph with dropout, stochastic depth, patch dropout and augmentation; processes meet once."""
    launch(BIT_FOR_BIT + PLAIN, folder, processes=processes)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_narrow_precision_and_its_scaler_see_no_difference(folder, precision):
    """float16's scale goes through the cache: the weights are those of one graph, whose gradient has none."""
    tower = {"name": "scratch", "layers": 1, "width": 8, "heads": 2, "dropout": 0.2, "tokenizer": {"vocab_size": 60}}
    data = {"train": {"source": str(folder / "rows.jsonl")}, "columns": {"text": "text"}}
    config = load_config({"method": {"name": "simcse"}, "data": data, "model": {"dim": 4, "text": tower}})
    method = build_method(config, folder).train()
    other = copy.deepcopy(method)
    batch = batch_of([2, 5, 3, 4])
    optimizer = torch.optim.SGD(method.parameters())
    settings = TrainingConfig(batch_size=4, micro_batch=2, clip_grad=None)
    cached = TrainStep(method, method, optimizer, settings, torch.device("cpu"), precision, None)
    cached.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "float16")  # one not to skip
    torch.manual_seed(0)
    result = cached([batch], Step(0, 1), 0.1)
    torch.manual_seed(0)
    embedded = []
    for part in batch.split([2, 2]):
        with torch.autocast("cpu", getattr(torch, precision)), batched_attention(torch.device("cpu"), 0):
            embedded.append(other.outputs(part))
    outputs = Outputs.cat(embedded)
    dtypes = {of.embeddings["anchor"].dtype for of in (outputs, result.outputs)}
    assert dtypes == {getattr(torch, precision)}
    loss = other.loss(outputs, Step(0, 1)).value
    loss.backward()
    assert result.loss == loss.item()
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            expected = parameter.detach() - 0.1 * parameter.grad
            torch.testing.assert_close(method.get_parameter(name).detach(), expected, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in method.parameters())
