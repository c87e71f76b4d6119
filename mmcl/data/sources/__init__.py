"""Rows from files, folders and the hub, as memory-mapped Arrow tables: one file a kind of source."""

from mmcl.data.rows import Rows
from mmcl.data.sources.open import open_described, open_source, source_named_by

__all__ = ["Rows", "open_described", "open_source", "source_named_by"]
