"""Two processes are one process with the same global batch: loss, gradients, learned weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcl.config.load import load_config, to_yaml
from mmcl.losses import info_nce
from mmcl.runtime.device import resolve_precision

from .processes import TRAIN, launch, run_all

GRADIENTS = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from mmcl.losses import info_nce
from mmcl.runtime.distributed import gather_rows, rank, world_size

dist.init_process_group("gloo")
data = load_file(sys.argv[1])
towers = torch.nn.ModuleDict({"a": torch.nn.Linear(6, 4), "b": torch.nn.Linear(6, 4)}).double()
towers.load_state_dict({name: data[name] for name in towers.state_dict()})
scale = torch.nn.Parameter(data["scale"])

class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.towers, self.scale = towers, scale
    def forward(self, a, b):
        return self.towers["a"](a), self.towers["b"](b)

both = Both()
shard = slice(rank() * 5, rank() * 5 + 5)
wrapped = DistributedDataParallel(both)  # kept: it must outlive the backward pass
a, b = wrapped(data["x"][shard], data["y"][shard])
loss = info_nce(gather_rows(a), gather_rows(b), (-both.scale).exp(), ids=gather_rows(data["ids"][shard]))
loss.backward()
if rank() == 0:
    grads = {name: p.grad for name, p in both.named_parameters()}
    save_file({"loss": loss.detach(), **grads}, sys.argv[2])
dist.barrier()
dist.destroy_process_group()
"""


def test_gradients_equal_those_of_the_global_batch_in_float64(tmp_path):
    torch.manual_seed(0)
    towers = torch.nn.ModuleDict({"a": torch.nn.Linear(6, 4), "b": torch.nn.Linear(6, 4)}).double()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(10, 6, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    ids = torch.tensor([0, 1, 2, 3, 4, 0, 6, 7, 3, 9])  # repeats across the two shards
    state = {name: tensor.detach().clone() for name, tensor in towers.state_dict().items()}
    save_file({**state, "scale": scale.detach(), "x": x, "y": y, "ids": ids}, tmp_path / "in.safetensors")
    loss = info_nce(towers["a"](x), towers["b"](y), (-scale).exp(), ids=ids)
    loss.backward()

    launch(GRADIENTS, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(got["loss"], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got["scale"], scale.grad, rtol=1e-10, atol=1e-14)
    for name, parameter in towers.named_parameters():
        torch.testing.assert_close(got[f"towers.{name}"], parameter.grad, rtol=1e-10, atol=1e-14)


SHARES = """
import torch
import torch.distributed as dist
from mmcl.encoding.shares import from_shares, share_of

dist.init_process_group("gloo")
for count in (1, 2, 7):
    mine = torch.from_numpy(share_of(count))
    assert len(mine) == (count + 1) // 2
    assert mine.max() < count
    assert from_shares(torch.stack([mine, -mine], dim=1), count).tolist() == [[n, -n] for n in range(count)]
dist.barrier()
dist.destroy_process_group()
"""


def test_shares_of_two_processes_join_in_order():
    launch(SHARES)


@pytest.fixture
def config_file(tmp_path, shapes_config):
    """A model whose rows do not meet in normalisation layers, without dropout: nothing but the loss joins them.

    In float32: gradients that are rounded to bfloat16 before they are added up differ by how the batch is divided.
    """
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    changes = [
        "model.image.name=timm:vit_tiny_patch16_224",
        f"model.image.args={json.dumps(vit)}",
        "model.text.dropout=0",
        "training.epochs=0.13",
        "training.log_every=1",
        "training.precision=float32",
    ]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(shapes_config, changes)))
    return path


def test_training_on_two_processes_equals_training_on_one(tmp_path, config_file):
    launch(TRAIN, config_file, tmp_path / "one", processes=1)
    launch(TRAIN, config_file, tmp_path / "two", processes=2)
    assert len(same_run(tmp_path / "one", tmp_path / "two")) == 10  # eight steps, the evaluations before and after


def same_run(one, two):
    """Assert that two runs have learned the same; returns the lines of their metrics."""
    logs = [[json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (one, two)]
    assert len(logs[0]) == len(logs[1])
    # Judging computes as a loaded model does, whatever training does; of 400 pairs a median rank may move by some.
    limit = 1e-3 if resolve_precision("auto", torch.device("cpu")) == "float32" else 0.05
    for alone, shared in zip(*logs, strict=True):
        if "loss" in alone:
            assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
            assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        for key in ("start", "evaluation"):
            assert shared.get(key, {}) == pytest.approx(alone.get(key, {}), rel=limit, abs=limit)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, two)]
    for name, alone in weights[0].items():
        torch.testing.assert_close(weights[1][name], alone, rtol=1e-3, atol=1e-4)
    return logs[0]


@pytest.mark.parametrize(
    ("parallel", "exchange"), [("ddp", "gather"), pytest.param("fsdp", "ring", marks=pytest.mark.slow)]
)
def test_sentences_learned_on_two_processes_equal_those_on_one(tmp_path, parallel, exchange):
    """Pairs with hard negatives, a head for training, batches without duplicates, and labelled pairs to judge by."""
    animals, verbs = ("dog", "cat", "cow", "hen", "fox", "owl"), ("runs", "sleeps", "eats", "sings", "waits", "hides")
    rows = [{"anchor": f"a {a} {v}", "positive": f"the {a} {v}", "negative": f"no {a}"} for a in animals for v in verbs]
    scored = [{"sentence1": r["anchor"], "sentence2": r["positive"], "score": n} for n, r in enumerate(rows)]
    for name, table in (("rows", rows), ("sts", scored)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    tower = {"name": "scratch", "layers": 1, "width": 16, "heads": 2, "dropout": 0, "tokenizer": {"vocab_size": 60}}
    config = {
        "method": {"name": "simcse", "training_head": True},
        "data": {
            "train": {"source": str(tmp_path / "rows.jsonl")},
            "columns": {role: role for role in rows[0]},
            "distinct": True,
        },
        "model": {"dim": 16, "text": {**tower, "head": {"kind": "none"}}},
        "training": {
            "epochs": 2,
            "batch_size": 6,
            "log_every": 1,
            "parallel": parallel,
            "exchange": exchange,
            "precision": "float32",
        },
        "evaluation": {"sources": {"dev": {"task": "sts", "source": str(tmp_path / "sts.jsonl")}}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config(config)))
    launch(TRAIN, path, tmp_path / "one", processes=1)
    launch(TRAIN, path, tmp_path / "two", processes=2)
    assert "dev/spearman" in same_run(tmp_path / "one", tmp_path / "two")[-1]["evaluation"]


@pytest.mark.slow
def test_shards_of_the_model_learn_what_full_copies_learn(tmp_path, config_file):
    """FSDP is DDP: after ten steps, weights, their average and the optimizer's state in the checkpoint are the same."""
    changes = ["training.epochs=0.16", "training.save_every=5", "training.average=0.9"]
    config = load_config(config_file, changes)
    for kind in ("ddp", "fsdp"):
        path = tmp_path / f"{kind}.yaml"
        path.write_text(to_yaml(load_config(config, [f"training.parallel={kind}"])))
        launch(TRAIN, path, tmp_path / kind, processes=2)
    full, shards = (tmp_path / kind / "checkpoints" / "step-00000010" for kind in ("ddp", "fsdp"))
    for file in ("model", "average", "optimizer"):
        expected, got = (load_file(folder / f"{file}.safetensors") for folder in (full, shards))
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5)
    models = [load_file(tmp_path / kind / "model" / "model.safetensors") for kind in ("ddp", "fsdp")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_other_optimizers_learn_the_same_from_shards(tmp_path, config_file, optimizer):
    for kind in ("ddp", "fsdp"):
        changes = [f"training.parallel={kind}", f"training.optimizer={optimizer}", "training.lr=0.1"]
        path = tmp_path / f"{kind}.yaml"
        path.write_text(to_yaml(load_config(config_file, [*changes, "training.weight_decay=1e-4"])))
        launch(TRAIN, path, tmp_path / kind, processes=2)
    same_run(tmp_path / "ddp", tmp_path / "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_resume_to_the_same_weights_bit_for_bit(tmp_path, config_file, kind):
    path = tmp_path / f"{kind}.yaml"
    path.write_text(to_yaml(load_config(config_file, [f"training.parallel={kind}", "model.text.dropout=0.1"])))
    launch(TRAIN, path, tmp_path / "full")
    launch(TRAIN, path, tmp_path / "cut")
    checkpoints = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    shutil.rmtree(checkpoints[-1])
    shutil.rmtree(tmp_path / "cut" / "model")
    launch(TRAIN, path, tmp_path / "cut", "--resume")
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("full", "cut")]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.slow
def test_a_network_with_a_parameter_for_another_training_learns_on_two_processes(tmp_path, config_file):
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dino")
    tower = {"name": f"transformers:{tmp_path / 'dino'}", "pretrained": True}
    path = tmp_path / "dino.yaml"
    path.write_text(to_yaml(load_config(config_file, [f"model.image={json.dumps(tower)}", "training.epochs=0.05"])))
    launch(TRAIN, path, tmp_path / "one", processes=1)
    launch(TRAIN, path, tmp_path / "two", processes=2)
    same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_parameters_that_get_no_gradient_are_named_where_several_processes_would_wait_for_them(tmp_path, config_file):
    """timm's BEiT reads the weight of its qkv without calling the layer: the adapter beside it is never asked."""
    pytest.importorskip("peft")
    beit = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
    tower = {"name": "timm:beit_base_patch16_224", "args": beit, "lora": {"rank": 2}}
    path = tmp_path / "beit.yaml"
    path.write_text(to_yaml(load_config(config_file, [f"model.image={json.dumps(tower)}", "training.epochs=0.05"])))
    for code, errors in run_all(TRAIN, path, tmp_path / "run", processes=2):
        assert code != 0
        assert "got no gradient, such as image.tower.net.blocks.0.attn.qkv.lora_" in errors
