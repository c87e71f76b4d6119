"""What tells one encoder from another, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json

from mmcl.data.processors import tokenize
from mmcl.formats.weights import weights_hash
from mmcl.models.image.tower import ImageTower
from mmcl.models.text.tower import TextTower
from mmcl.models.towers import Towers

_TEXT = ("pooling", "max_tokens", "include_prompt", "lowercase", "padded", "masked")
_IMAGE = ("size", "resize")


def fingerprint(towers: Towers) -> dict[str, str]:
    """``weights``: a hash of the weights and of what else decides the vectors; ``prompt``: the text that is put before
    every other by default, of several text towers a JSON object of these.

    A device, or the precision that is computed in, is no part of it.
    """
    described = []
    prompts = {}
    for tower_name in towers.names:
        tower = towers.embedder(tower_name).tower
        names = _IMAGE if isinstance(tower, ImageTower) else _TEXT
        described.append([tower_name, {name: getattr(tower, name, None) for name in names}])
        if isinstance(tower, ImageTower):
            described.append([tower.mean.flatten().tolist(), tower.std.flatten().tolist()])
        elif isinstance(tower, TextTower):
            described.append([tokenize.content_key(tower.tokenizer), ""])
            prompts[tower_name] = tower.prompt_text()
    content = json.dumps([described, weights_hash(towers.embedders)], sort_keys=True, default=str)
    prompt = next(iter(prompts.values()), "") if len(prompts) < 2 else json.dumps(prompts, sort_keys=True)
    return {"weights": hashlib.sha256(content.encode()).hexdigest()[:32], "prompt": prompt}
