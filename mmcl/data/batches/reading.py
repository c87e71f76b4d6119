"""What is read of every row, and what for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmcl.data.batches.towers import Embedder, Encoder
from mmcl.data.batches.views import Extra, View
from mmcl.data.identity import stable_hash
from mmcl.data.processors.image import ImageProcessor
from mmcl.runtime.errors import MmclError

# Of the shorter side of an original in that of a view. In published recipes crops come from photographs of 375 to 500
# pixels (torchvision, timm), or stored at 480 (DALI's and MXNet's recipes) or 375 (FFCV's, 500 the longer side) for
# views of 224: 1.7 to 2.2. At 1.5 a crop of average area (Inception's: 0.54) still has the pixels of its view, for
# three times the bytes of a square.
_STORED = 1.5


@dataclass(frozen=True)
class Reading:
    """What is read of every row, and what for.

    Attributes:
        columns: role to modality (``image``, ``text``, ``label``, ``number``).
        encoder: its towers say what their inputs are.
        optional: roles of texts that a row may lack.
        views: of the columns, by name. A column that none is of passes through the tower of its modality.
        extra: items beside a global batch, by name.
        references: name to a model whose features of every item a batch carries.
    """

    columns: Mapping[str, str]
    encoder: Encoder
    optional: frozenset[str] = frozenset()
    views: Mapping[str, View] = field(default_factory=dict)
    extra: Mapping[str, Extra] = field(default_factory=dict)
    references: Mapping[str, Encoder] = field(default_factory=dict)

    def tower(self, column: str) -> str:
        """Name of the tower that a column is read for."""
        return next((view.tower for view in self._of(column)), self.columns[column])

    def embedder(self, column: str) -> Embedder:
        """What a column is read for."""
        return self.encoder.embedder(self.tower(column))

    def draws(self, column: str) -> int:
        """Random draws that the views take of a column."""
        return sum(view.count for view in self._of(column) if view.draw_of is None)

    def text_stream(self, column: str) -> int:
        """The stream of random numbers by which the texts of a column are changed, see
        :meth:`~mmcl.data.augment.texts.TextAugmentation.on_stream`: each column has another, the first one 0."""
        first = next(role for role, modality in self.columns.items() if modality == "text")
        return 0 if column == first else stable_hash(column)

    def changes(self, column: str) -> bool:
        """Whether views change the items of a column on the device, so that their features cannot be kept."""
        return any(view.transform is not None or view.side is not None for view in self._of(column))

    def stored_side(self, column: str, setting: int | Literal["square"] | None) -> int | None:
        """The shorter side, at most, of the originals that the views of a column of images are cropped from, as
        ``data.image.stored`` says; None where squares of the tower's size are what they are made of."""
        crops = [view for view in self._of(column) if view.cuts]
        processor = self.embedder(column).processor
        if not isinstance(processor, ImageProcessor):
            return None
        if processor.patch is not None and self.changes(column) and not crops:
            raise MmclError(
                f"augmentation: the image tower reads '{column}' in its own shape, which only crops can change; set "
                "augmentation.crop_scale, or leave augmentation out"
            )
        squares = setting == "square" and processor.patch is None
        if not crops or squares:
            return None
        largest = max(view.side or processor.size for view in crops)
        return setting if isinstance(setting, int) else math.ceil(_STORED * largest)

    def _of(self, column: str) -> list[View]:
        return [view for view in self.views.values() if view.column == column]
