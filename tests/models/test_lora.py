"""Low-rank adapters: they start as nothing, only they learn, and merged they leave an ordinary network."""

from __future__ import annotations

import logging
import sys

import open_clip
import pytest
import timm
import torch
import transformers

from mmcl.config.model import LoraConfig
from mmcl.models.blocks import freeze
from mmcl.models.lora import add_lora, has_lora, merge_lora
from mmcl.runtime.errors import MmclError

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2}
VISION = {"layers": 2, "width": 32, "head_width": 16, "image_size": 16, "patch_size": 8}
BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def timm_vit():
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=8, depth=2, embed_dim=24, num_heads=2
    )


NETS = {
    "timm": timm_vit,
    "convnext": lambda: timm.create_model(
        "convnext_tiny", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), ls_init_value=1.0
    ),
    "open_clip": lambda: open_clip.CLIP(8, VISION, TEXT).visual,
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False),
}


@pytest.fixture(params=list(NETS))
def net(request):
    torch.manual_seed(0)
    return NETS[request.param]().eval()


def run(net):
    if isinstance(net, transformers.BertModel):
        return net(torch.tensor([[1, 5, 9, 7], [2, 8, 3, 4]])).last_hidden_state
    side = 16 if hasattr(net, "positional_embedding") or hasattr(net, "pos_embed") else 32
    return net(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)))


def learn(net, steps=3):
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        run(net).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adapters_start_as_nothing_learn_alone_and_merge_into_the_same_function(net):
    names, before = set(net.state_dict()), run(net).detach()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    add_lora(net, LoraConfig(rank=2))
    torch.testing.assert_close(run(net), before, atol=1e-6, rtol=0)

    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    run(net).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == learning
    net.zero_grad()
    learn(net)
    learned = run(net).detach()
    assert (learned - before).abs().max() > 0.01
    frozen = {name.replace(".base_layer.", "."): t for name, t in net.state_dict().items() if ".lora_" not in name}
    assert frozen.keys() == names
    assert all(torch.equal(weights[name], tensor) for name, tensor in frozen.items()), "bit for bit: nothing drifts"

    assert has_lora(net)
    merge_lora(net)
    assert not has_lora(net)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(run(net), learned, atol=1e-5, rtol=1e-5)
    merge_lora(net)  # again: nothing happens


def test_the_state_of_adapters_alone_restores_them(net):
    add_lora(net, LoraConfig(rank=2))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    learn(net)
    learned = run(net).detach()
    adapters = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    net.load_state_dict(start)
    assert not torch.equal(run(net), learned)
    net.load_state_dict(adapters, strict=False)
    assert torch.equal(run(net), learned)


def test_merged_weights_equal_the_papers_equation():
    torch.manual_seed(0)
    net = timm_vit()
    layer = net.blocks[1].mlp.fc1
    weight = layer.weight.detach().clone()
    add_lora(net, LoraConfig(rank=3, alpha=6.0, targets=["fc1"]))
    adapted = net.blocks[1].mlp.fc1
    down, up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    with torch.no_grad():
        up.normal_()
    assert down.shape == (3, 24)
    merge_lora(net)
    assert net.blocks[1].mlp.fc1 is layer
    torch.testing.assert_close(layer.weight, weight + 6.0 / 3 * up @ down)


def test_targets_choose_layers_and_frozen_blocks_get_no_adapters():
    net = timm_vit()
    freeze(net, 1)
    add_lora(net, LoraConfig(targets=["qkv", "fc2"]))
    learning = {name.split(".lora_")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"blocks.1.attn.qkv", "blocks.1.mlp.fc2"}


def test_convolutions_by_name_and_statistics_that_stand_still():
    net = timm.create_model("resnet10t", num_classes=0, channels=[8, 8, 16, 16], stem_width=8)
    with pytest.raises(MmclError, match=r"no linear layers in blocks that learn; name convolutions"):
        add_lora(net, LoraConfig())
    names = set(net.state_dict())
    still = add_lora(net, LoraConfig(rank=2, targets=["conv1"]))
    assert {type(module) for module in still} == {torch.nn.BatchNorm2d}
    net.eval()
    learn(net)
    learned = run(net).detach()
    merge_lora(net)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(run(net), learned, atol=1e-5, rtol=1e-5)


def test_what_is_skipped_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="mmcl"):
        add_lora(NETS["open_clip"](), LoraConfig())
    assert "output projections of 2 attention layers are not adapted" in caplog.text


def test_mistakes_are_told_in_one_line(monkeypatch):
    with pytest.raises(MmclError, match=r"lora.targets: no layer of VisionTransformer .* 'qvk'; did you mean 'qkv'"):
        add_lora(timm_vit(), LoraConfig(targets=["qvk"]))
    with pytest.raises(MmclError, match=r"lora.dropout is 0.1, .* set it to 0"):
        add_lora(NETS["open_clip"](), LoraConfig(dropout=0.1))
    add_lora(NETS["open_clip"](), LoraConfig(dropout=0.1, targets=["c_fc", "c_proj"]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MmclError, match=r"pip install 'mmcl\[lora\]'"):
        add_lora(timm_vit(), LoraConfig())
