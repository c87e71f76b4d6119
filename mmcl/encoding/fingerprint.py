"""What tells one encoder from another, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from mmcl.formats.weights import weights_hash
from mmcl.models.image.tower import ImageTower
from mmcl.models.text import tokenize
from mmcl.models.text.tower import TextTower

if TYPE_CHECKING:
    from mmcl.encoding.encoder import Encoder

_TEXT = ("pooling", "max_tokens", "include_prompt", "lowercase", "padded", "masked")
_IMAGE = ("size", "resize")


def fingerprint(encoder: Encoder) -> dict[str, str]:
    """A hash of the weights and of what else decides the vectors, and the words put before a text by default.

    A device, or the precision that is computed in, is no part of it.
    """
    described = []
    for modality in sorted(encoder.modalities):
        tower = encoder.embedder(modality).tower
        names = _IMAGE if isinstance(tower, ImageTower) else _TEXT
        described.append([modality, {name: getattr(tower, name, None) for name in names}])
        if isinstance(tower, ImageTower):
            described.append([tower.mean.flatten().tolist(), tower.std.flatten().tolist()])
        elif isinstance(tower, TextTower):
            described.append([tokenize.content_key(tower.tokenizer), ""])
    content = json.dumps([described, weights_hash(encoder.embedders)], sort_keys=True, default=str)
    prompt = encoder.prompt_words() if "text" in encoder.modalities else ""
    return {"weights": hashlib.sha256(content.encode()).hexdigest()[:32], "prompt": prompt}
