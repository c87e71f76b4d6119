"""What folders of sentence-transformers, of every generation, say of a model; read without that library.

Such a folder lists its modules in ``modules.json``: a transformer, a pooling, any number of dense layers, a
normalisation. Where the transformer lies, how a pooling is spelled and what the modules are called has changed over
the years; what they compute has not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor, nn

from mmcl.data.processors.text import TextProcessor
from mmcl.formats.tensor_files import read_tensors
from mmcl.models.heads import ACTIVATIONS, Dense
from mmcl.models.towers import Conventions
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import read_any_json, read_json

WEIGHTS = "model.safetensors"
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
_ORDER = ("Transformer", "WordWeights", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True)
class DenseSettings:
    """A dense layer behind the pooling.

    Attributes:
        folder: where its weights are.
        inputs: width that it reads.
        layer: the width that it gives, its bias and its activation.
    """

    folder: Path
    inputs: int
    layer: Dense

    def load_into(self, layer: nn.Linear) -> None:
        """Fill ``layer`` with its weights.

        Raises:
            MmclError: they are missing, damaged, or of other widths.
        """
        state = {name.removeprefix("linear."): tensor for name, tensor in _read_weights(self.folder).items()}
        expected = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if found != expected:
            raise MmclError(f"{self.folder}: holds {_shapes(found)}, but its config.json describes {_shapes(expected)}")
        layer.load_state_dict(state)


@dataclass(frozen=True)
class SentenceTransformersSettings:
    """What a folder says of a text encoder beside the transformer itself.

    Attributes:
        transformer: where the transformer lies, relative to the folder; empty for the folder itself.
        pooling: as in ``model.text.pooling``; several joined by ``+`` are concatenated.
        max_tokens: longer texts are cut here; None where only the transformer and its tokenizer set a limit.
        prompts: name to the words put before a text.
        default_prompt: name of the prompt of texts for which none is named.
        include_prompt: whether the prompt's tokens enter the pooling.
        lowercase: whether texts are lower-cased before they are tokenized.
        token_weights: folder of the weights of the tokens in the mean; None where all count alike.
        dense: layers behind the pooling, in order.
        conventions: how its vectors are meant to be taken.
    """

    transformer: str = ""
    pooling: str = "mean"
    max_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    lowercase: bool = False
    token_weights: Path | None = None
    dense: list[DenseSettings] = field(default_factory=list)
    conventions: Conventions = field(default_factory=lambda: Conventions(normalize=False))

    def processor(self, tokenizer: Any, max_tokens: int) -> TextProcessor:
        """What makes the encoder's inputs, by ``tokenizer``, of texts cut at ``max_tokens``."""
        return TextProcessor(
            tokenizer,
            max_tokens=max_tokens,
            prompts=self.prompts,
            default_prompt=self.default_prompt,
            include_prompt=self.include_prompt,
            lowercase=self.lowercase,
        )


def read_settings(folder: Path) -> SentenceTransformersSettings:
    """What ``folder`` says of its encoder; for a plain transformers folder, what that library assumes: the mean over
    the tokens, or the last token of a language model.

    Raises:
        MmclError: a file is damaged, or the folder has a module or setting that cannot be reproduced here.
    """
    if not (folder / MODULES).is_file():
        return SentenceTransformersSettings(pooling=_default_pooling(folder))
    try:
        return _read_settings(folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MmclError(f"{folder}: damaged ({type(error).__name__}: {error}); take a fresh copy") from None


def _read_settings(folder: Path) -> SentenceTransformersSettings:
    stored = _read_json(folder / SETTINGS)
    if (kind := stored.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise MmclError(f"{folder}: a {kind} gives no one vector a text; use a model of the type SentenceTransformer")
    settings: dict[str, Any] = {}
    dense: list[DenseSettings] = []
    listed = [(_kind(module["type"], folder), _within(folder, module["path"])) for module in _modules(folder)]
    listed = [(kind, path) for kind, path in listed if kind != "Dropout"]  # which an encoder in use does not do
    _check_order([kind for kind, _ in listed], folder)
    for kind, path in listed:
        if kind == "Transformer":
            settings |= {"transformer": path, **_read_transformer(folder / path)}
        elif kind == "WordWeights":
            settings["token_weights"] = folder / path
        elif kind == "Pooling":
            settings |= _read_pooling(folder / path)
        elif kind == "Dense":
            dense.append(_read_dense(folder / path))
        elif kind == "Normalize":
            _check_place(_read_json(folder / path / "config.json"), folder / path)
    if "token_weights" in settings and settings["pooling"] != "mean":
        raise MmclError(f"{folder}: its word weights count in pooling '{settings['pooling']}', which is not supported")
    if "token_weights" in settings and not settings["include_prompt"]:
        raise MmclError(f"{folder}: its word weights count prompts that it leaves out, which is not supported")
    for before, after in itertools.pairwise(dense):
        if before.layer.width != after.inputs:
            raise MmclError(
                f"{after.folder}: reads {after.inputs} features, but {before.folder.name} gives {before.layer.width}"
            )
    prompts = {name: text or "" for name, text in (stored.get("prompts") or {}).items()}
    default = stored.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise MmclError(f"{folder / SETTINGS}: its default prompt '{default}' is none of its prompts")
    return SentenceTransformersSettings(
        **settings,
        dense=dense,
        prompts=prompts,
        default_prompt=default,
        conventions=Conventions(
            normalize=any(kind == "Normalize" for kind, _ in listed),
            similarity=stored.get("similarity_fn_name") or "cosine",
            truncate_dim=stored.get("truncate_dim"),
        ),
    )


def _default_pooling(folder: Path) -> str:
    """Where only a transformer is given: of a causal language model only the last state depends on the full text."""
    config = _read_json(folder / "config.json")
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
    if kind not in (*_ORDER, "Dropout"):
        known = ", ".join(_ORDER)
        raise MmclError(f"{folder}: its module '{kind}' is not supported (only {known} are); use a model without it")
    return kind


def _within(folder: Path, path: str) -> str:
    """``path`` itself, once it is sure to lie in the folder."""
    windows = PureWindowsPath(path)
    if windows.anchor or ".." in windows.parts or PurePosixPath(path).is_absolute():
        raise MmclError(f"{folder / MODULES}: its path '{path}' leads out of the folder")
    return path


def _check_order(kinds: list[str], folder: Path) -> None:
    """A transformer, a pooling, dense layers, a normalisation: what another order computes is another function."""
    once = kinds.count("Transformer") == 1 and kinds.count("Pooling") == 1 and kinds.count("WordWeights") <= 1
    if not once or kinds != sorted(kinds, key=_ORDER.index):
        found = ", ".join(kinds)
        raise MmclError(f"{folder}: its modules are {found}; only {', '.join(_ORDER)} can be read")


def _read_transformer(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = next(
        (read for name in TRANSFORMER_CONFIGS if (read := _read_json(folder / name))),
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
    config = _read_config(folder)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := [mode for mode in modes if mode not in POOLING_NAMES]:
        known = ", ".join(POOLING_NAMES)
        raise MmclError(f"{folder}: pooling '{unknown[0]}' is not supported; use a model of {known}")
    pooling = "+".join(POOLING_NAMES[mode] for mode in modes)
    return {"pooling": pooling, "include_prompt": bool(config.get("include_prompt", True))}


def _read_dense(folder: Path) -> DenseSettings:
    config = _read_config(folder)
    _check_place(config, folder)
    if config.get("use_residual"):
        raise MmclError(f"{folder}: a dense layer with a residual connection is not supported; use a model without it")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rsplit(".", 1)[-1].lower()
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise MmclError(f"{folder}: its activation '{activation}' is not supported; use a model without it")
    layer = Dense(int(config["out_features"]), bool(config.get("bias", True)), name)
    return DenseSettings(folder, int(config["in_features"]), layer)


def _check_place(config: Mapping[str, Any], folder: Path) -> None:
    """A module works on the pooled vector, unless its settings say otherwise."""
    for key in ("module_input_name", "module_output_name"):
        if (name := config.get(key) or "sentence_embedding") != "sentence_embedding":
            raise MmclError(f"{folder}: works on '{name}' rather than on the pooled vector, which is not supported")


def read_token_weights(folder: Path) -> Tensor:
    """(V,) weights of the tokens.

    Raises:
        MmclError: they are missing or damaged, or one of them is not positive.
    """
    table = _read_weights(folder).get("emb_layer.weight")
    if table is None or not bool((table > 0).all()):
        raise MmclError(f"{folder}: its word weights are missing or not positive, which is not supported")
    return table.float().squeeze(1)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a module's folder: safetensors, or in old folders a pickle that may hold tensors alone."""
    path = next((folder / name for name in (WEIGHTS, "pytorch_model.bin") if (folder / name).is_file()), None)
    if path is None:
        raise MmclError(f"{folder}: the weights are missing; take a fresh copy of the model")
    return read_tensors(path)


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in sorted(shapes.items())) or "nothing"


def _read_config(folder: Path) -> dict[str, Any]:
    """The settings of a module that computes nothing known without them."""
    if not (folder / "config.json").is_file():
        raise MmclError(f"{folder / 'config.json'}: is missing, but {MODULES} lists its folder; take a fresh copy")
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty without it, for nearly all of these files are optional."""
    return read_json(path) if path.is_file() else {}
