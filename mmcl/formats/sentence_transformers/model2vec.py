"""Static embeddings as model2vec keeps them: its folders list a ``StaticEmbedding`` for sentence-transformers, beside a
``config.json`` that says how model2vec itself reads texts."""

from __future__ import annotations

import logging
from pathlib import Path

from mmcl.data.processors.tokenize import forget_limits, unknown_id
from mmcl.formats.sentence_transformers.files import CONFIG, WEIGHTS
from mmcl.formats.weights import save_tensors
from mmcl.models.text.embedder import TextEmbedder
from mmcl.models.text.limits import UNLIMITED
from mmcl.models.text.static import TokenMean
from mmcl.models.towers import Towers
from mmcl.runtime.files import read_json, write_json

log = logging.getLogger("mmcl")
_MAX_TOKENS = 512  # where a folder says nothing


def is_model2vec(folder: Path) -> bool:
    """Whether ``folder`` is one of model2vec's."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == "model2vec"


def read_model2vec(folder: Path) -> tuple[int | None, bool]:
    """How many tokens a text may have, None for any number; and whether its vector has unit length."""
    config = read_json(folder / CONFIG)
    return config.get("max_length", _MAX_TOKENS), bool(config.get("normalize", False))


def cannot_express(embedder: TextEmbedder) -> str | None:
    """Why model2vec cannot compute what ``embedder`` does; None if it can."""
    net, processor = embedder.tower.net, embedder.processor
    if not isinstance(net, TokenMean):
        return "it has the mean of static token vectors only"
    if embedder.head.layers:
        return "it has no layers behind the mean"
    if processor.lowercase and not processor.folds_case:
        return "its tokenizer does not lower-case"
    if len(net.vectors.weight) != len(processor.tokenizer.get_vocab()):
        return "it needs a vector for each entry of the tokenizer"
    return None


def write_model2vec(towers: Towers, folder: Path) -> None:
    """Write the text half of ``towers`` as a folder that model2vec opens, and sentence-transformers too."""
    embedder = towers.text()
    processor, net, normalize = embedder.processor, embedder.tower.net, towers.conventions.normalize
    if processor.prompts:
        log.warning("model2vec keeps no prompts; '%s' has %s", towers.name, ", ".join(sorted(processor.prompts)))
    unknown = unknown_id(processor.tokenizer) if processor.ignored_id is None else None
    if unknown is not None and not (normalize and bool((net.vectors.weight[unknown] == 0).all())):
        log.warning("model2vec leaves unknown words out of the mean, in which '%s' counts them", towers.name)
    forget_limits(processor.tokenizer)
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    save_tensors(folder / WEIGHTS, {"embeddings": net.vectors.weight})
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "hidden_dim": embedder.tower.width,
        "normalize": normalize,
        "max_length": processor.max_tokens if processor.max_tokens < UNLIMITED else None,
        "embedding_dtype": "float32",
    }
    write_json(folder / CONFIG, config)
    kinds = {"StaticEmbedding": ".", **({"Normalize": "1_Normalize"} if normalize else {})}
    listing = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", listing)
