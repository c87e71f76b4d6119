"""Parameter groups and schedules."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from lightly.utils.lars import LARS
from timm.optim import param_groups_layer_decay
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from mmcl.config.model import HeadConfig
from mmcl.config.training import GroupConfig, TrainingConfig
from mmcl.models.blocks import depths
from mmcl.models.heads import Head
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.runtime.errors import MmclError
from mmcl.training.optimization.optim import (
    build_optimizer,
    describe_learning,
    freeze_groups,
    learning_rate,
    peak_rate,
    public_name,
    without_gradient,
)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_equal_transformers(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, 10, 50),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, 10, 50),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, 10),
    }[schedule]()
    config = TrainingConfig(lr=0.3, schedule=schedule, warmup=10)
    for step in range(50):
        expected = theirs.get_last_lr()[0]
        ours = learning_rate(config, step, 50)
        if step < 10:  # theirs starts at zero, so that its first step learns nothing; ours is one step ahead
            assert ours == pytest.approx(0.3 * (step + 1) / 10)
        else:
            assert ours == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_cosine_of_the_learning_rate_is_that_of_the_first_version_bit_for_bit():
    """A resumed run goes on at the very rate."""
    config = TrainingConfig(lr=3e-3, warmup=3)
    for step in range(3, 1000):
        progress = (step - 3) / (1000 - 3)
        assert learning_rate(config, step, 1000) == 3e-3 * (1 + math.cos(math.pi * progress)) / 2


def test_a_warmup_below_one_is_a_share_of_the_steps():
    shares, counts = TrainingConfig(warmup=0.2), TrainingConfig(warmup=10)
    assert [learning_rate(shares, s, 50) for s in range(50)] == [learning_rate(counts, s, 50) for s in range(50)]


def test_gains_biases_and_temperature_do_not_decay():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    module.register_parameter("logit_scale", torch.nn.Parameter(torch.tensor(1.0)))
    module[2].weight.requires_grad_(False)
    optimizer = build_optimizer(module, TrainingConfig(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: decay.get(id(p)) for name, p in module.named_parameters()}
    assert named == {
        "logit_scale": 0.0,
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": None,
        "2.bias": 0.0,
    }


class Tower(torch.nn.Module):
    """A network as a tower holds it."""

    def __init__(self, net):
        super().__init__()
        self.net = net


def method_with(**nets):
    """Parameters named as in a method: one embedder a modality, and a temperature."""
    embedders = {name: ImageEmbedder(None, Tower(net), Head(HeadConfig(), 24, 8)) for name, net in nets.items()}
    method = torch.nn.Module()
    method.encoder = torch.nn.Module()
    method.encoder.embedders = torch.nn.ModuleDict(embedders)
    method.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
    return method


def vit(classes=0, depth=3):
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=classes, img_size=16, patch_size=8, depth=depth, embed_dim=24, num_heads=2
    )


def settings_of(method, config):
    """Public name to (lr_scale, weight_decay), of what learns."""
    optimizer = build_optimizer(method, config)
    of = {id(p): (g["lr_scale"], g["weight_decay"], g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    found = {public_name(name): of[id(p)] for name, p in method.named_parameters() if id(p) in of}
    assert all(rate == pytest.approx(config.lr * scale) for scale, _, rate in found.values())
    return {name: (scale, decay) for name, (scale, decay, _) in found.items()}


def groups(*settings):
    return [GroupConfig(**each) for each in settings]


def test_layer_decay_scales_as_timms():
    net = vit(classes=5)
    theirs = param_groups_layer_decay(net, layer_decay=0.7)
    scale_of = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    ours = settings_of(method_with(image=net), TrainingConfig(layer_decay=0.7))
    compared = 0
    for name, parameter in net.named_parameters():
        # timm counts the final norm to the last block; here, as in BEiT's own code, it is above it.
        expected = 1.0 if name.startswith("norm.") else scale_of[id(parameter)]
        assert ours[f"image.tower.net.{name}"][0] == pytest.approx(expected), name
        compared += 1
    assert compared == len(depths(net))
    assert {name: scale for name, (scale, _) in ours.items() if ".net." not in name} == {
        "image.head.1.weight": 1.0,
        "logit_scale": 1.0,
    }


def test_the_first_group_that_matches_has_a_parameter_and_multiplies_with_layer_decay():
    config = TrainingConfig(
        weight_decay=0.2,
        layer_decay=0.5,
        groups=groups(
            {"match": r"^image\.tower\.net\.blocks\.2\.", "lr": 0.1},
            {"match": r"bias$", "weight_decay": 0.3},
            {"match": r"^image\.tower", "lr": 4.0},
            {"match": r"^logit_scale$", "lr": 0.25},
        ),
    )
    found = settings_of(method_with(image=vit()), config)
    assert found["image.tower.net.blocks.2.attn.qkv.weight"] == (0.1 * 0.5, 0.2)
    assert found["image.tower.net.blocks.2.attn.qkv.bias"] == (0.1 * 0.5, 0.0)
    assert found["image.tower.net.blocks.0.attn.qkv.bias"] == (0.5**3, 0.3)
    assert found["image.tower.net.blocks.0.attn.qkv.weight"] == (4 * 0.5**3, 0.2)
    assert found["image.head.1.weight"] == (1.0, 0.2)
    assert found["logit_scale"] == (0.25, 0.0)


def test_groups_of_equal_settings_are_one_and_their_order_is_that_of_the_names():
    def numbers():
        method = method_with(image=vit(), text=vit())
        config = TrainingConfig(groups=groups({"match": "image"}, {"match": "text.tower", "lr": 0.5}))
        optimizer = build_optimizer(method, config)
        name_of = {id(p): name for name, p in method.named_parameters()}
        return [[name_of[id(p)] for p in group["params"]] for group in optimizer.param_groups]

    first = numbers()
    assert len(first) == 4  # two rates, with decay and without
    assert first == numbers()
    place = {name: number for number, (name, _) in enumerate(method_with(image=vit(), text=vit()).named_parameters())}
    assert all([place[name] for name in group] == sorted(place[name] for name in group) for group in first)


def test_a_learning_rate_of_zero_takes_parameters_out_of_learning():
    method = method_with(image=vit(), text=vit())
    config = TrainingConfig(groups=groups({"match": r"^text\.tower", "lr": 0}))
    freeze_groups(method, config)
    still = {public_name(name) for name, p in method.named_parameters() if not p.requires_grad}
    assert still == {f"text.tower.net.{name}" for name, _ in vit().named_parameters()}
    assert not still & settings_of(method, config).keys()
    with pytest.raises(MmclError, match="nothing is learned"):
        build_optimizer(method, TrainingConfig(groups=groups({"match": ".", "lr": 0})))


def test_patterns_that_choose_nothing_are_mistakes():
    method = method_with(image=vit())
    wrong = groups({"match": "head"}, {"match": r"^image\.tower\.net\.block\.0\.attn\.qkv"})
    with pytest.raises(MmclError, match=r"groups\[1\].*no parameter; the nearest are image.tower.net.blocks.0"):
        build_optimizer(method, TrainingConfig(groups=wrong))
    shadowed = groups({"match": "image"}, {"match": "image.head", "lr": 0.1})
    with pytest.raises(MmclError, match=r"groups\[1\]: 'image.head' matches only parameters that a group before"):
        build_optimizer(method, TrainingConfig(groups=shadowed))
    with pytest.raises(MmclError, match=r"layer_decay: the image tower .Sequential. is no stack of blocks"):
        build_optimizer(method_with(image=torch.nn.Sequential(torch.nn.Linear(2, 2))), TrainingConfig(layer_decay=0.5))


def test_what_learns_is_reported_part_by_part():
    method = method_with(image=vit(), text=vit())
    method.encoder.embedders["text"].tower.requires_grad_(False)
    method.encoder.embedders["image"].tower.net.patch_embed.requires_grad_(False)
    sizes = [p.numel() for p in vit().parameters()]
    patches = sum(p.numel() for p in vit().patch_embed.parameters())
    total = sum(sizes)
    assert describe_learning(method) == (
        f"logit_scale, image.tower {total - patches:,} of {total:,}, image.head 192, "
        f"text.tower frozen ({total:,}), text.head 192"
    )


def test_what_gets_no_gradient_is_named():
    method = method_with(image=vit())
    embedder = method.encoder.embedders["image"]
    embedder.head(embedder.tower.net(torch.rand(1, 3, 16, 16))).sum().backward()
    assert without_gradient(method) == ["logit_scale"]


def learned_by(optimizer, steps=4, **settings):
    """A matrix, a bias and a table of embeddings before and after some steps, with the gradients of each step."""
    generator = torch.Generator().manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Embedding(9, 6), torch.nn.Linear(6, 8))
    module.requires_grad_(True)
    start = {name: p.detach().clone().double() for name, p in module.named_parameters()}
    built = build_optimizer(module, TrainingConfig(optimizer=optimizer, lr=0.1, **settings))
    gradients = []
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients.append({name: p.grad.double() for name, p in module.named_parameters()})
        built.step()
    return start, gradients, {name: p.detach().double() for name, p in module.named_parameters()}


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_momentum_in_float64(nesterov):
    start, gradients, found = learned_by("sgd", weight_decay=0.01, momentum=0.9, nesterov=nesterov)
    for name, weight in start.items():
        velocity = torch.zeros_like(weight)
        for gradient in gradients:
            decayed = gradient[name] + (0.0 if "bias" in name else 0.01) * weight
            velocity = 0.9 * velocity + decayed
            weight = weight - 0.1 * (decayed + 0.9 * velocity if nesterov else velocity)
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_adapts_matrices_and_neither_adapts_nor_decays_biases(decay):
    """You et al. 2017, algorithm 1, in float64."""
    start, gradients, found = learned_by("lars", weight_decay=decay, momentum=0.9, trust=0.02)
    for name, weight in start.items():
        velocity = torch.zeros_like(weight)
        for gradient in gradients:
            update = gradient[name]
            if "bias" not in name:
                trust = 0.02 * weight.norm() / (update.norm() + decay * weight.norm())
                update = trust * (update + decay * weight)
            velocity = 0.9 * velocity + update
            weight = weight - 0.1 * velocity
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)


def test_lars_is_lightlys():
    """Which neither adapts nor decays what has no weight decay."""
    start, gradients, found = learned_by("lars", weight_decay=0.01, momentum=0.9, trust=0.02)
    weights = {name: torch.nn.Parameter(weight.clone()) for name, weight in start.items()}
    kinds = {decay: [w for name, w in weights.items() if ("bias" in name) == (decay == 0)] for decay in (0.01, 0.0)}
    theirs = LARS(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in kinds.items()],
        lr=0.1,
        momentum=0.9,
        trust_coefficient=0.02,
    )
    for gradient in gradients:
        for name, weight in weights.items():
            weight.grad = gradient[name].clone()
        theirs.step()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.detach(), atol=1e-6, rtol=1e-5)


def test_muon_is_torchs_for_matrices_and_adamw_for_all_else():
    start, gradients, found = learned_by("muon", weight_decay=0.02, momentum=0.95, betas=(0.9, 0.98))
    weights = {name: torch.nn.Parameter(weight.float()) for name, weight in start.items()}
    adamw = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6}
    theirs = [
        torch.optim.Muon([weights["1.weight"]], 0.1, 0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([weights["0.weight"]], **adamw, weight_decay=0.02),
        torch.optim.AdamW([weights["1.bias"]], **adamw, weight_decay=0.0),
    ]
    for gradient in gradients:
        for name, weight in weights.items():
            weight.grad = gradient[name].float()
        for optimizer in theirs:
            optimizer.step()
    torch.testing.assert_close(found["1.weight"].float(), weights["1.weight"].detach(), atol=2e-3, rtol=0.0)
    for name in ("0.weight", "1.bias"):
        torch.testing.assert_close(found[name].float(), weights[name].detach(), atol=1e-6, rtol=1e-5)


def test_the_rate_grows_with_the_batch_as_the_papers_say():
    """Goyal et al.'s 0.1 for 256 rows is 3.2 for 8192; SimCLR's 0.075 √batch is 4.8 for 4096."""
    linear = TrainingConfig(lr=0.1, lr_scaling="linear", batch_size=8192)
    root = TrainingConfig(lr=1.2, lr_scaling="sqrt", batch_size=1024, accumulate=4)
    assert peak_rate(linear) == pytest.approx(3.2)
    assert peak_rate(root) == pytest.approx(0.075 * math.sqrt(4096)) == pytest.approx(4.8)
    assert max(learning_rate(linear, step, 50) for step in range(50)) == pytest.approx(3.2)
    assert peak_rate(TrainingConfig(lr=0.3, batch_size=8192)) == 0.3


def test_the_decay_of_matrices_has_a_schedule_and_that_of_named_groups_has_none():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    config = TrainingConfig(
        weight_decay=0.04, weight_decay_end=0.4, groups=groups({"match": "^1", "weight_decay": 0.04})
    )
    optimizer = build_optimizer(module, config)
    scheduled = {id(p) for g in optimizer.param_groups if g.get("scheduled_decay") for p in g["params"]}
    assert {name for name, p in module.named_parameters() if id(p) in scheduled} == {"0.weight"}
    assert not any("scheduled_decay" in g for g in build_optimizer(module, TrainingConfig()).param_groups)
