"""What is read of every row, and what for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmcl.data.batches.towers import Embedder, Encoder
from mmcl.data.batches.views import Extra, View


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

    def changes(self, column: str) -> bool:
        """Whether views change the items of a column on the device, so that their features cannot be kept."""
        return any(view.transform is not None or view.size is not None for view in self._of(column))

    def _of(self, column: str) -> list[View]:
        return [view for view in self.views.values() if view.column == column]
