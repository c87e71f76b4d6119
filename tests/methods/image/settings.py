"""Small settings of every method over images alone, and a tower with batch normalisation."""

from __future__ import annotations

import torch
from torch import nn

from mmcl.methods import Step
from mmcl.methods.image.barlow_twins import BarlowTwins, BarlowTwinsConfig
from mmcl.methods.image.byol import Byol, ByolConfig
from mmcl.methods.image.dino import Dino, DinoConfig
from mmcl.methods.image.lejepa import Lejepa, LejepaConfig
from mmcl.methods.image.moco import Moco, MocoConfig
from mmcl.methods.image.simclr import Simclr, SimclrConfig
from mmcl.methods.image.simsiam import Simsiam, SimsiamConfig
from mmcl.methods.image.sup_con import SupCon, SupConConfig
from mmcl.methods.image.swav import Swav, SwavConfig
from mmcl.methods.image.vicreg import Vicreg, VicregConfig

STEP = Step(3, 10)
SMALL = {"hidden": [8], "dim": 4}
SETTINGS = {
    Simclr: SimclrConfig(projector=SMALL),
    Moco: MocoConfig(projector=SMALL | {"norm": "none"}, queue=10, statistics_groups=2, momentum=0.9),
    Byol: ByolConfig(projector=SMALL, predictor=SMALL, momentum=0.9),
    Simsiam: SimsiamConfig(projector=SMALL | {"norm_output": True}, predictor={"hidden": [3]}),
    Swav: SwavConfig(projector=SMALL, prototypes=5, local_crops=4, local_size=8, freeze_prototypes=2, queue=16),
    Dino: DinoConfig(projector=SMALL | {"norm": "none"}, prototypes=5, local_crops=3, local_size=8, momentum=0.9),
    Lejepa: LejepaConfig(projector=SMALL, local_crops=2, local_size=8, directions=16),
    BarlowTwins: BarlowTwinsConfig(projector=SMALL),
    Vicreg: VicregConfig(projector=SMALL, invariance_weight=2.0, variance_weight=3.0, covariance_weight=4.0),
    SupCon: SupConConfig(projector=SMALL),
}


class Tower(nn.Module):
    """Mean and spread of each channel, through a layer with batch normalisation."""

    width = 6

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.sizes = []

    def forward(self, pixels):
        self.sizes.append(tuple(pixels.shape))
        flat = pixels.flatten(2)
        return self.net(torch.cat([flat.mean(2), flat.std(2)], dim=1))
