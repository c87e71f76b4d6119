"""The blocks of networks of all families, against the order in which they are seen to run, and the depth of parameters
against what is seen to change with them."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
import transformers
from torch import nn

from mmcl.models.blocks import blocks, depths, freeze
from mmcl.runtime.errors import MmclError

BERT_LIKE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 30, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PATCHES = {"image_size": 16, "patch_size": 8}
OPEN_CLIP_TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 3}


def timm_net(name, **args):
    return timm.create_model(name, num_classes=0, **args)


def open_clip_visual(**vision):
    return open_clip.CLIP(8, vision, OPEN_CLIP_TEXT).visual


NETS = {
    "timm vit": lambda: timm_net("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=3, embed_dim=24),
    "timm siglip vit": lambda: timm_net(
        "vit_base_patch16_siglip_224", img_size=16, patch_size=8, depth=2, embed_dim=24, num_heads=2
    ),
    "timm resnet, basic": lambda: timm_net("resnet10t", channels=[8, 8, 16, 16], stem_width=8),
    "timm resnet, bottleneck": lambda: timm_net("resnet26", channels=[4, 4, 8, 8]),
    "timm convnext": lambda: timm_net("convnext_tiny", depths=(1, 2, 1, 2), dims=(8, 16, 24, 32)),
    "timm swin": lambda: timm_net(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, embed_dim=8, depths=(1, 2), num_heads=(1, 2)
    ),
    "timm efficientnet": lambda: timm_net("test_efficientnet"),
    "open_clip vit": lambda: open_clip_visual(layers=3, width=32, head_width=16, **PATCHES),
    "open_clip resnet": lambda: open_clip_visual(layers=[1, 2, 1, 1], width=8, image_size=32),
    "open_clip text": lambda: open_clip.transformer.TextTransformer(output_dim=8, **OPEN_CLIP_TEXT),
    "transformers bert": lambda: transformers.BertModel(transformers.BertConfig(**BERT_LIKE, **WORDS)),
    "transformers mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**BERT_LIKE, **WORDS)),
    "transformers vit": lambda: transformers.ViTModel(transformers.ViTConfig(**BERT_LIKE, **PATCHES)),
    "transformers clip": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(projection_dim=8, **BERT_LIKE, **PATCHES)
    ),
    "transformers clip text": lambda: transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(projection_dim=8, **BERT_LIKE, **WORDS)
    ),
    "transformers siglip": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**BERT_LIKE, **PATCHES)
    ),
    "transformers dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**BERT_LIKE, **PATCHES)),
    "transformers resnet": lambda: transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    ),
}
SIDE_16 = {"vit", "siglip vit", "clip", "siglip", "dinov2"}


def make(name):
    """The network in evaluation mode, and a function that runs it on the same random inputs every time."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    kind = name.split(maxsplit=1)[1]
    if kind in ("text", "clip text", "bert", "mpnet"):
        inputs = torch.tensor([[1, 5, 9, 7, 2, 3, 4, 6], [1, 8, 3, 4, 9, 2, 5, 7]])
    else:
        side = 16 if kind in SIDE_16 else 32
        inputs = torch.rand(2, 3, side, side)

    def run():
        out = net(inputs)
        return out if isinstance(out, torch.Tensor) else torch.cat([tensor.flatten() for tensor in out.to_tuple()])

    return net, run


@pytest.fixture(params=list(NETS))
def any_net(request):
    """One network after the other: it, and what runs it."""
    return make(request.param)


def test_blocks_run_in_their_order_once_each_and_one_after_the_other(any_net):
    net, run = any_net
    found = blocks(net)
    assert len(found) >= 2
    calls = []
    for number, block in enumerate(found):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(("start", number)))
        block.register_forward_hook(lambda *_, number=number: calls.append(("end", number)))
    run()
    assert calls == [(what, number) for number in range(len(found)) for what in ("start", "end")]


def test_parameters_change_the_blocks_from_their_depth_on(any_net):
    """A parameter that is no number spreads to all that is computed from it."""
    net, run = any_net
    found = blocks(net)
    spoiled = set()

    def spoils(values):
        return any(isinstance(value, torch.Tensor) and bool(value.float().isnan().any()) for value in values)

    def before(module, args, kwargs):
        if spoils([*args, *kwargs.values()]):
            spoiled.add(0)

    found[0].register_forward_pre_hook(before, with_kwargs=True)
    for number, block in enumerate(found, start=1):

        def after(module, args, out, number=number):
            if spoils(out if isinstance(out, tuple) else [out]):
                spoiled.add(number)

        block.register_forward_hook(after)
    depth_of = depths(net)
    assert list(depth_of) == [name for name, _ in net.named_parameters()]
    used = 0
    for name, parameter in net.named_parameters():
        spoiled.clear()
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.fill_(torch.nan)
            if run().isnan().any():
                spoiled.add(len(found) + 1)
                used += 1
                assert spoiled == set(range(depth_of[name], len(found) + 2)), name
            parameter.copy_(kept)
    assert used > 0.7 * len(depth_of)  # torch's attention kernel on CPUs ignores scores that are no number


def test_freezing_stops_exactly_the_first_blocks_and_what_comes_before(any_net):
    net, run = any_net
    still = freeze(net, 1)
    depth_of = depths(net)
    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, depth in depth_of.items() if depth > 1}
    run().sum().backward()
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if name not in learning)
    first, *later = blocks(net)
    assert {id(module) for module in first.modules()} <= {id(module) for module in still}
    assert not {id(module) for block in later for module in block.modules()} & {id(module) for module in still}


def test_frozen_blocks_have_no_dropout_and_running_statistics_that_stand_still():
    for name, kind in {"timm resnet, basic": nn.BatchNorm2d, "transformers bert": nn.Dropout}.items():
        net, run = make(name)
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        still = freeze(net, 1)
        inputs = []
        blocks(net)[1].register_forward_pre_hook(lambda _, args, kept=inputs: kept.append(args[0].detach().clone()))
        net.train()
        for module in still:
            module.training = False
        assert {module.training for module in net.modules() if isinstance(module, kind)} == {True, False}
        outputs = [run().detach(), run().detach()]
        assert torch.equal(*inputs), "what the frozen blocks give does not depend on chance or on the batches before"
        if kind is nn.Dropout:
            assert not torch.equal(*outputs)
        moved = {key for key, tensor in net.state_dict().items() if not torch.equal(tensor, before[key])}
        assert not any(key.startswith(("conv1", "bn1", "layer1")) for key in moved)
        assert any("layer4" in key for key in moved) or kind is nn.Dropout


def test_patches_go_on_being_left_out_before_frozen_blocks():
    net = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=2, embed_dim=24, patch_drop_rate=0.5
    )
    still = freeze(net, 1)
    assert net.patch_drop not in still
    assert net.pos_drop in still


def test_zero_blocks_freeze_nothing_and_more_than_there_are_is_an_error():
    net, _ = make("open_clip vit")
    assert freeze(net, 0) == []
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(
        MmclError, match=r"freeze_blocks is 4, but the network .VisionTransformer. has 3; give at most 3"
    ):
        freeze(net, 4)
    with pytest.raises(MmclError, match="no stack of blocks"):
        freeze(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 1)
