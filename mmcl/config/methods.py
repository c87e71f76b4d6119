"""What is learned: a section by the settings of the method that it names."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from mmcl.config.by_name import ByName
from mmcl.config.section import Section
from mmcl.runtime.registry import Registry


class MethodConfig(Section):
    """Settings of a method, which stand beside it as its ``Config``."""

    name: str


class HasConfig(Protocol):
    """A method, of which a config needs to know the settings only."""

    Config: type[MethodConfig]


METHODS: Registry[Any] = Registry(
    "mmcl.methods",
    "method",
    {
        "clip": "mmcl.methods.image_text.clip:Clip",
        "slip": "mmcl.methods.image_text.slip:Slip",
        "siglip": "mmcl.methods.image_text.siglip:Siglip",
        "simcse": "mmcl.methods.text.simcse:Simcse",
        "scored_pairs": "mmcl.methods.text.scored_pairs:ScoredPairs",
        "two_tower": "mmcl.methods.two_tower:TwoTower",
        "simclr": "mmcl.methods.image.simclr:Simclr",
        "moco": "mmcl.methods.image.moco:Moco",
        "byol": "mmcl.methods.image.byol:Byol",
        "simsiam": "mmcl.methods.image.simsiam:Simsiam",
        "swav": "mmcl.methods.image.swav:Swav",
        "dino": "mmcl.methods.image.dino:Dino",
        "lejepa": "mmcl.methods.image.lejepa:Lejepa",
        "vicreg": "mmcl.methods.image.vicreg:Vicreg",
        "barlow_twins": "mmcl.methods.image.barlow_twins:BarlowTwins",
        "siamese": "mmcl.methods.siamese:Siamese",
        "sup_con": "mmcl.methods.image.sup_con:SupCon",
    },
)
"""Methods by name. Another package adds its own by the entry-point group ``mmcl.methods``."""

METHOD = ByName(METHODS, MethodConfig, key="name", default="clip", alone=True)
AnyMethodConfig = Annotated[MethodConfig, METHOD]
