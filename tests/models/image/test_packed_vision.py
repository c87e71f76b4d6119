"""open_clip's vision transformers in bfloat16: close to float32, and only where nothing else is in the tower."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from mmcl.data.processors.image import ImageProcessor
from mmcl.encoding.image_compute import ImageCompute
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.image.packed import PackedVision, runs_packed
from mmcl.models.image.tower import ImageTower

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def vision_tower(**settings: object) -> ImageTower:
    torch.manual_seed(0)
    shape = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 4, "mlp_ratio": 2.0}
    net = open_clip.transformer.VisionTransformer(**{**shape, "output_dim": 48, **settings})
    for name, weight in net.named_parameters():  # biases begin as 0, and norms as 1
        if name.endswith(("bias", "weight")) and weight.ndim == 1:
            nn.init.normal_(weight, float(name.endswith("weight")), 0.1)
    return ImageTower(net, {"name": "tiny"}, ImageProcessor(32, "crop", MEAN, STD)).eval()


def images() -> torch.Tensor:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(4, 1).repeat(4, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"act_layer": open_clip.transformer.QuickGELU},
        {"no_ln_pre": True, "pool_type": "avg"},
        {"final_ln_after_pool": True, "patch_size": 16},
    ],
    ids=["CLIP", "quickgelu", "average", "final norm"],
)
def test_features_are_those_of_open_clip_in_float32(settings: dict[str, object]) -> None:
    tower = vision_tower(**settings)
    assert runs_packed(tower)
    with torch.inference_mode():
        exact, packed = (
            tower.double()(images().permute(0, 3, 1, 2).double() / 255),
            PackedVision(tower.float())(images()),
        )
    assert packed.dtype == torch.float32
    centred = exact - exact.mean(0)  # what tells the images apart
    assert torch.cosine_similarity(exact, packed.double()).min() > 0.9995
    assert torch.cosine_similarity(centred, packed.double() - exact.mean(0)).min() > 0.99


def test_a_tower_with_anything_else_in_it_runs_as_it_is() -> None:
    assert not runs_packed(vision_tower(ls_init_value=0.1))
    assert not runs_packed(vision_tower(attentional_pool=True))
    assert not runs_packed(vision_tower(qk_norm=True))
    hooked = vision_tower()
    hooked.net.transformer.resblocks[1].mlp.register_forward_hook(lambda *_: None)
    assert not runs_packed(hooked)
    adapted = vision_tower()
    adapted.net.transformer.resblocks[0].mlp.c_fc = nn.Sequential(adapted.net.transformer.resblocks[0].mlp.c_fc)
    assert not runs_packed(adapted)


def test_what_was_prepared_ends_with_the_weights() -> None:
    tower = vision_tower()
    embedder = ImageEmbedder(ImageProcessor(32, "crop", MEAN, STD), tower, nn.Identity())
    compute = ImageCompute(embedder, torch.bfloat16)
    assert compute.suits(embedder, torch.bfloat16)
    assert not compute.suits(embedder, torch.float32)
    with torch.no_grad():
        tower.net.proj.mul_(2)
    assert not compute.suits(embedder, torch.bfloat16)
