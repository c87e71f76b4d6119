"""What folders of sentence-transformers, of every generation, say of a model; read without that library.

Such a folder lists its modules in ``modules.json``: one that reads texts, such as a transformer; layers over the states
of its tokens; a pooling; layers over the vector. A router has such a list for each kind of text. Where the transformer
lies, how a pooling is spelled and what the modules are called has changed over the years; what they compute has not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from mmcl.data.processors.text import TextProcessor
from mmcl.formats.sentence_transformers.files import read_config, read_optional
from mmcl.formats.sentence_transformers.layers import FORMATS, SENTENCE, TOKENS, StoredLayer, read_layer
from mmcl.formats.sentence_transformers.model2vec import is_model2vec, read_model2vec
from mmcl.formats.sentence_transformers.router import read_router
from mmcl.models.layers import Normalize
from mmcl.models.text.token_layers import LayerMean
from mmcl.models.towers import Conventions
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import read_any_json

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"

POOLING_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""That library's name of each pooling, to ours."""

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The older spelling, one flag a pooling, in the order in which the vectors of several are concatenated."""

# A module for each architecture was the first generation; they all hold a transformer as transformers saves it.
_TRANSFORMERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT", "CamemBERT", "XLMRoBERTa", "XLNet")
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
OF_TOKENS, OF_TEXTS = ("Transformer", "WordEmbeddings"), ("StaticEmbedding", "BoW", "CLIPModel")
"""The modules that read texts: into states of tokens, which are pooled, or into one vector."""
_KNOWN = (*OF_TOKENS, *OF_TEXTS, "WordWeights", "Pooling", *FORMATS, "Router")


@dataclass(frozen=True)
class Pipeline:
    """How a text becomes a vector: the module that reads it, and what stands behind that.

    Attributes:
        folder: of the model.
        reads: the kind of the module that reads texts, one of :data:`OF_TOKENS` or :data:`OF_TEXTS`; or
            ``model2vec``, whose static embeddings leave unknown words out.
        path: where that lies, relative to the folder; empty for the folder itself.
        token_layers: between the states of the tokens and the pooling.
        pooling: as in ``model.text.pooling``; several joined by ``+`` are concatenated.
        max_tokens: longer texts are cut here; None where only the module that reads them and its tokenizer set a limit.
        prompts: name to the words put before a text.
        default_prompt: name of the prompt of texts for which none is named.
        include_prompt: whether the prompt's tokens enter the pooling.
        lowercase: whether texts are lower-cased before they are tokenized.
        token_weights: folder of the weights of the tokens in the mean; None where all count alike.
        layers: behind the pooling, in order; a normalisation at their end is one of the ``conventions``.
        conventions: how its vectors are meant to be taken.
    """

    folder: Path
    reads: str = "Transformer"
    path: str = ""
    token_layers: list[StoredLayer] = field(default_factory=list)
    pooling: str = "mean"
    max_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    lowercase: bool = False
    token_weights: Path | None = None
    layers: list[StoredLayer] = field(default_factory=list)
    conventions: Conventions = field(default_factory=lambda: Conventions(normalize=False))

    @property
    def source(self) -> Path:
        """The folder of the module that reads texts."""
        return self.folder / self.path

    def processor(self, tokenizer: Any, max_tokens: int, **settings: Any) -> TextProcessor:
        """What makes the encoder's inputs, by ``tokenizer``, of texts cut at ``max_tokens``; ``settings`` are others
        of :class:`~mmcl.data.processors.text.TextProcessor`."""
        return TextProcessor(
            tokenizer,
            max_tokens=max_tokens,
            prompts=self.prompts,
            default_prompt=self.default_prompt,
            include_prompt=self.include_prompt,
            lowercase=self.lowercase,
            **settings,
        )


@dataclass(frozen=True)
class Routes:
    """The pipelines of a folder.

    Attributes:
        by_name: ``text`` alone where there is no router; else those of its routes.
        default: name of the one for texts that ask for none; None where one has to be named.
    """

    by_name: dict[str, Pipeline]
    default: str | None = None


def read_settings(folder: Path) -> Pipeline:
    """What ``folder`` says of its encoder; for a plain transformers folder, what that library assumes: the mean over
    the tokens, or the last token of a language model.

    Raises:
        MmclError: a file is damaged, or the folder has a module or setting that cannot be reproduced here, or a router.
    """
    routes = read_routes(folder).by_name
    if len(routes) > 1:
        raise MmclError(f"{folder}: has a text encoder for each of {', '.join(routes)}; name it in model.name")
    return next(iter(routes.values()))


def read_routes(folder: Path) -> Routes:
    """As :func:`read_settings`, of each route of a router.

    Raises:
        MmclError: a file is damaged, or the folder has a module or setting that cannot be reproduced here.
    """
    if is_model2vec(folder):
        max_tokens, normalize = read_model2vec(folder)
        conventions = Conventions(normalize=normalize)
        return Routes({"text": Pipeline(folder, "model2vec", max_tokens=max_tokens, conventions=conventions)})
    if not (folder / MODULES).is_file():
        return Routes({"text": Pipeline(folder, pooling=_default_pooling(folder))})
    try:
        return _read_routes(folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MmclError(f"{folder}: damaged ({type(error).__name__}: {error}); take a fresh copy") from None


def _read_routes(folder: Path) -> Routes:
    stored = read_optional(folder / SETTINGS)
    if (kind := stored.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise MmclError(f"{folder}: a {kind} gives no one vector a text; use a model of the type SentenceTransformer")
    listed = [_listed(folder, module["type"], module["path"]) for module in _modules(folder)]
    if listed[0][0] != "Router":
        return Routes({"text": _read_pipeline(folder, listed, stored)})
    router = read_router(folder / listed[0][1])
    pipelines = {}
    for name, modules in router.routes.items():
        own = [_listed(folder, kind, str(PurePosixPath(listed[0][1], path))) for path, kind in modules]
        pipelines[name] = _read_pipeline(folder, own + listed[1:], stored)
    return Routes(pipelines, router.default)


def _listed(folder: Path, name: str, path: str) -> tuple[str, str]:
    """What kind of module it is, and where it lies."""
    kind, path = _kind(name, folder), _within(folder, path)
    if kind == "Transformer" and read_optional(folder / path / "config.json").get("model_type") in ("clip", "siglip"):
        kind = "CLIPModel"  # which newer releases no longer tell from other transformers
    return kind, path


def _read_pipeline(folder: Path, listed: Sequence[tuple[str, str]], stored: dict[str, Any]) -> Pipeline:
    _check_order([kind for kind, _ in listed], folder)
    settings: dict[str, Any] = {}
    layers: list[StoredLayer] = []
    for kind, path in listed:
        if kind in OF_TOKENS or kind in OF_TEXTS:
            settings |= {"reads": kind, "path": path}
            settings |= _read_transformer(folder / path) if kind == "Transformer" else {}
        elif kind == "WordWeights":
            settings["token_weights"] = folder / path
        elif kind == "Pooling":
            settings |= _read_pooling(folder / path)
        else:
            layers.append(read_layer(kind, folder / path))
            is_pooled = "pooling" in settings or settings["reads"] in OF_TEXTS
            if is_pooled != (layers[-1].place == SENTENCE):
                where = "behind" if is_pooled else "before"
                raise MmclError(f"{folder / path}: works on '{layers[-1].place}' {where} the pooling")
    if "token_weights" in settings and settings["pooling"] != "mean":
        raise MmclError(f"{folder}: its word weights count in pooling '{settings['pooling']}', which is not supported")
    if "token_weights" in settings and not settings["include_prompt"]:
        raise MmclError(f"{folder}: its word weights count prompts that it leaves out, which is not supported")
    behind = [layer for layer in layers if layer.place == SENTENCE]
    _check_widths(behind)
    normalize = bool(behind) and isinstance(behind[-1].layer, Normalize)
    prompts = {name: text or "" for name, text in (stored.get("prompts") or {}).items()}
    default = stored.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise MmclError(f"{folder / SETTINGS}: its default prompt '{default}' is none of its prompts")
    return Pipeline(
        folder,
        **settings,
        token_layers=_token_layers(folder, layers, settings),
        layers=behind[:-1] if normalize else behind,
        prompts=prompts,
        default_prompt=default,
        conventions=Conventions(
            normalize=normalize,
            similarity=stored.get("similarity_fn_name") or "cosine",
            truncate_dim=stored.get("truncate_dim"),
        ),
    )


def _token_layers(folder: Path, layers: Sequence[StoredLayer], settings: dict[str, Any]) -> list[StoredLayer]:
    """Those between states and pooling. A mean of layers does nothing there unless the network is told to give them."""
    found = [layer for layer in layers if layer.place == TOKENS]
    config = read_optional(folder / settings["path"] / "config.json")
    if not config.get("output_hidden_states"):
        found = [layer for layer in found if not isinstance(layer.layer, LayerMean)]
    _check_widths(found)
    return found


def _check_widths(layers: Sequence[StoredLayer]) -> None:
    sized = [layer for layer in layers if layer.inputs is not None]
    for before, after in itertools.pairwise(sized):
        if (width := before.layer.dim(before.inputs)) != after.inputs:
            raise MmclError(f"{after.folder}: reads {after.inputs} features, but {before.folder.name} gives {width}")


def _default_pooling(folder: Path) -> str:
    """Where only a transformer is given: of a causal language model only the last state depends on the full text."""
    config = read_optional(folder / "config.json")
    architecture = (config.get("architectures") or [""])[0]
    return "last" if architecture.endswith("ForCausalLM") and config.get("is_causal", True) else "mean"


def _modules(folder: Path) -> list[dict[str, str]]:
    modules = read_any_json(folder / MODULES)
    if not isinstance(modules, list) or not modules:
        raise MmclError(f"{folder / MODULES}: damaged (not a list of modules); take a fresh copy")
    return modules


def _kind(name: str, folder: Path) -> str:
    """The module's own name, which every generation has put into another package."""
    kind = name.rsplit(".", 1)[-1]
    if not name.startswith("sentence_transformers."):
        raise MmclError(f"{folder}: its module '{name}' is code of its own, which is not run; use a model without it")
    if kind in _TRANSFORMERS:
        return "Transformer"
    if kind == "Asym":  # as the router was called once
        return "Router"
    if kind not in _KNOWN:
        raise MmclError(f"{folder}: its module '{kind}' is not supported; use a model without it")
    return kind


def _within(folder: Path, path: str) -> str:
    """``path`` itself, once it is sure to lie in the folder."""
    windows = PureWindowsPath(path)
    if windows.anchor or ".." in windows.parts or PurePosixPath(path).is_absolute():
        raise MmclError(f"{folder / MODULES}: its path '{path}' leads out of the folder")
    return path


def _check_order(kinds: list[str], folder: Path) -> None:
    """One that reads texts, and at most one pooling, before which there are layers of tokens and behind which of texts;
    token weights stand right before it."""
    reads = [kind for kind in kinds if kind in OF_TOKENS or kind in OF_TEXTS]
    poolings = kinds.count("Pooling")
    good = len(reads) == 1 and kinds[0] == reads[0] and "Router" not in kinds and poolings == (kinds[0] in OF_TOKENS)
    if "WordWeights" in kinds:
        good = good and kinds.count("WordWeights") == 1 and kinds[kinds.index("WordWeights") + 1 :][:1] == ["Pooling"]
    if not good:
        raise MmclError(
            f"{folder}: its modules are {', '.join(kinds)}, an order that cannot be read; use a model that reads texts "
            "by one module and pools once"
        )


def _read_transformer(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = next(
        (read for name in TRANSFORMER_CONFIGS if (read := read_optional(folder / name))),
        {},
    )
    if (task := config.get("transformer_task", "feature-extraction")) != "feature-extraction":
        raise MmclError(f"{folder}: its transformer does {task}, which gives no token states to pool")
    texts = config.get("modality_config", {}).get("text", {})
    if (output := texts.get("method_output_name", "last_hidden_state")) != "last_hidden_state":
        raise MmclError(f"{folder}: its transformer gives '{output}', not token states to pool")
    limits = [config.get("max_seq_length")]
    for key in ("tokenizer_args", "processor_kwargs"):
        limits.append((config.get(key) or {}).get("model_max_length"))
    for key in ("common", "text"):
        limits.append((config.get("processing_kwargs") or {}).get(key, {}).get("max_length"))
    given = [int(limit) for limit in limits if limit is not None]
    return {"max_tokens": min(given) if given else None, "lowercase": bool(config.get("do_lower_case", False))}


def _read_pooling(folder: Path) -> dict[str, Any]:
    """The older spelling has a flag for each pooling."""
    config = read_config(folder)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := [mode for mode in modes if mode not in POOLING_NAMES]:
        known = ", ".join(POOLING_NAMES)
        raise MmclError(f"{folder}: pooling '{unknown[0]}' is not supported; use a model of {known}")
    pooling = "+".join(POOLING_NAMES[mode] for mode in modes)
    return {"pooling": pooling, "include_prompt": bool(config.get("include_prompt", True))}


def read_token_weights(folder: Path) -> Tensor:
    """(V,) weights of the tokens: those of the settings, which are all that the library reads.

    Raises:
        MmclError: they are missing or damaged, or one of them is not positive.
    """
    table = weights_of(read_config(folder))
    if not bool((table > 0).all()):
        raise MmclError(f"{folder}: one of its word weights is not positive, which is not supported")
    return table


def weights_of(config: Mapping[str, Any]) -> Tensor:
    """(V,) weights of the words in ``config``: of each as it stands, else in lower case, else one for all others."""
    known, otherwise = config.get("word_weights") or {}, float(config.get("unknown_word_weight", 1))
    return torch.tensor([float(known.get(word, known.get(word.lower(), otherwise))) for word in config["vocab"]])
