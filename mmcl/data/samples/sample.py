"""What every sample data set is: a folder in the cache, built once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl.runtime.files import atomic_folder, cache_dir


@dataclass(frozen=True)
class Sample:
    """A sample data set or model: what it is, on what terms, and how its folder is made.

    ``build(folder, show_progress)`` fills an empty folder and returns facts about it (counts, packages) for the
    record that lies beside the data. ``version`` changes whenever the built folder would.
    """

    name: str
    version: str
    summary: str
    terms: str
    download_mb: float
    build: Callable[[Path, bool | None], dict[str, Any]]

    @property
    def folder(self) -> Path:
        """Where the built sample lies, or will lie."""
        return cache_dir("samples", self.name) / self.version

    @property
    def record(self) -> Path:
        """The JSON file that says what the folder holds; it is there exactly when the folder is whole."""
        return self.folder / "sample.json"

    def get(self, show_progress: bool | None = None) -> Path:
        """The folder, built first if it is not there. Raises ``MmclError`` if a package cannot be fetched."""
        if not self.record.exists():
            with atomic_folder(self.folder) as folder:
                facts = self.build(folder, show_progress)
                about = {"name": self.name, "version": self.version, "terms": self.terms, **facts}
                text = json.dumps(about, indent=2, ensure_ascii=False)
                (folder / self.record.name).write_text(text + "\n", encoding="utf-8")
        return self.folder
