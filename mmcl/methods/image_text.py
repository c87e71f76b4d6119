"""What the methods over pairs of an image and a text share."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mmcl.config import schema
from mmcl.data.batches.batch import Batch
from mmcl.methods.base import Views, refuse_unknown_roles
from mmcl.methods.paired import Paired


class ImageText(Paired):
    """Images and texts in one space."""

    sides: ClassVar[tuple[str, str]] = ("image", "text")

    @classmethod
    def inputs_of(cls, config: schema.Config) -> dict[str, str]:
        inputs = {"image": "image", "text": "text"}
        refuse_unknown_roles(config, inputs)
        return inputs

    def embed(self, batch: Batch) -> Views:
        inputs = {"image": self.pictures(batch), "text": batch.inputs["text"]}
        views = {role: self.encoder.embedder(role)(**tensors) for role, tensors in inputs.items()}
        return views | {"ids": batch.ids} | self.embed_references(batch)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The pictures of a batch, in training changed at random, if the config says so."""
        image = batch.inputs["image"]
        if self.augmentation is not None and self.training and "pixels" in image:
            image = {"pixels": self.augmentation(image["pixels"], batch.seeds)}
        return image
