"""What turns rows of tables into vectors of the shared space."""

from __future__ import annotations

from typing import ClassVar

from mmcl.data.processors.table import TableProcessor
from mmcl.models.embedder import Embedder
from mmcl.models.heads import Head
from mmcl.models.table.tower import TableTower


class TableEmbedder(Embedder):
    """Embeds groups of columns: the inputs of each field under the column's name, see
    :meth:`mmcl.models.table.tower.TableTower.forward`."""

    modality: ClassVar[str] = "table"
    processor: TableProcessor
    tower: TableTower

    def __init__(self, processor: TableProcessor, tower: TableTower, head: Head, *, frozen: bool = False) -> None:
        super().__init__(processor, tower, head, frozen=frozen)
