"""What the methods over pairs of an image and a text share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mmcl.config import schema
from mmcl.data.batches.batch import Inputs
from mmcl.data.batches.views import View
from mmcl.methods.base import refuse_unknown_roles
from mmcl.methods.paired import Paired


class ImageText(Paired):
    """Images and texts in one space."""

    sides: ClassVar[tuple[str, str]] = ("image", "text")

    @classmethod
    def columns_of(cls, config: schema.Config) -> dict[str, str]:
        columns = {"image": "image", "text": "text"}
        refuse_unknown_roles(config, columns)
        return columns

    def views(self) -> dict[str, View]:
        return {"image": View("image", "image", self.augment), "text": View("text", "text")}

    def embed(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        return {side: self.encoder.embedder(side)(**inputs[side]) for side in self.sides}
