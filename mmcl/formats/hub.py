"""Models of the hub, as far as a folder of theirs is needed: settings, tokenizers, and each set of weights once."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from mmcl.runtime.errors import MmclError, first_line

# The hub's patterns are shells', in which * goes through folders too.
_SETTINGS = ["*.json", "*.txt", "*.model", "*.spm", "*.tokenizer", "*.codes", "*.tiktoken"]
_ELSEWHERE = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_OLDER = {"model*.safetensors": "pytorch_model*.bin", "adapter_model.safetensors": "adapter_model.bin"}


def fetch(name: str) -> Path:
    """The snapshot of a transformers or sentence-transformers model, or of adapters for one.

    Where a folder has its weights twice, only those in safetensors files are fetched.

    Raises:
        MmclError: the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_SETTINGS, "*.safetensors"], ignore_patterns=_ELSEWHERE))
        if older := _older_weights(folder):
            folder = Path(snapshot_download(name, allow_patterns=[*_SETTINGS, *older], ignore_patterns=_ELSEWHERE))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise MmclError(f"'{name}': no such folder, and not to be had from the hub ({first_line(error)})") from None
    return folder


def _older_weights(folder: Path) -> list[str]:
    """Patterns of PyTorch's own files, for the modules that have no safetensors file."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        paths = ["", *(str(module["path"]) for module in listed)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # damage is reported where the settings are read
        paths = [""]
    inside = dict.fromkeys(PurePosixPath(path) for path in paths)  # as the hub's lists have them: no "./", no last "/"
    bare = [path for path in inside if not any(any((folder / path).glob(name)) for name in _OLDER)]
    return [str(path / older) for path in bare for older in _OLDER.values()]
