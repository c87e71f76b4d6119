"""Train, use and judge contrastive embeddings.

The public names are imported on first use, so that ``import mmcl`` costs milliseconds and pulls in no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmcl.runtime.version import __version__

if TYPE_CHECKING:
    from mmcl import encoding as encoding
    from mmcl import evaluation as evaluation
    from mmcl import losses as losses
    from mmcl import reports as reports
    from mmcl import retrieval as retrieval
    from mmcl.config import Config as Config
    from mmcl.encoding import Encoder as Encoder
    from mmcl.encoding.distill import distill_static as distill_static
    from mmcl.encoding.load import load as load
    from mmcl.retrieval import Index as Index
    from mmcl.retrieval import Searcher as Searcher
    from mmcl.runtime.errors import MmclError as MmclError
    from mmcl.training import Run as Run
    from mmcl.training import train as train

_HOMES = {
    "Config": "mmcl.config",
    "Encoder": "mmcl.encoding",
    "Index": "mmcl.retrieval",
    "MmclError": "mmcl.runtime.errors",
    "Run": "mmcl.training",
    "Searcher": "mmcl.retrieval",
    "distill_static": "mmcl.encoding.distill",
    "load": "mmcl.encoding.load",
    "train": "mmcl.training",
}
_MODULES = ("encoding", "evaluation", "losses", "reports", "retrieval")

__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mmcl.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mmcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
