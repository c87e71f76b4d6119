"""The tower that embeds texts: any transformers encoder, a small new transformer with its own tokenizer, or (in
``open_clip_text``) the text half of an open_clip model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl.config.model import TextTowerConfig
from mmcl.data import samples
from mmcl.data.identity import stable_hash
from mmcl.models.activations import checkpoint_activations
from mmcl.models.pooling import POOLINGS, pool
from mmcl.models.tokenizer import open_tokenizer
from mmcl.models.transformers_nets import own_vector, quiet_transformers, rebuild
from mmcl.models.weights import full_disk_is_oserror
from mmcl.runtime.errors import MmclError

SCRATCH_MAX_TOKENS = 64


class TextTower(nn.Module):
    """Tokens to features.

    Attributes:
        width: number of features.
        max_tokens: longer texts are cut here, special tokens included.
        pooling: how token states become one vector; ``pooled`` is the vector that the model itself gives.
        prompts: name to the words put before a text.
        padded: the length to which ``forward`` pads every text for a model that reads padding, as SigLIP does, whatever
            ``max_tokens``: such a model reads the last of all its positions; 0 for others.
    """

    modality: ClassVar[str] = "text"
    net: Any  # a transformers model, whose type depends on the name

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        *,
        pooling: str,
        max_tokens: int,
        prompts: dict[str, str] | None = None,
        padded: int = 0,
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.net = net
        self.tokenizer = tokenizer
        self._check_vocabulary()
        pooler = getattr(net, "pooler", None)
        if isinstance(pooler, nn.Module) and pooling != "pooled":
            pooler.requires_grad_(False)  # unused: no gradient reaches it, which data parallelism would wait for
        self._forget_limits()
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.prompts = prompts or {}
        self.padded = padded
        self.masked = masked
        self.width = self._measure_width() if pooling == "pooled" else int(net.config.hidden_size)

    @classmethod
    def build(cls, config: TextTowerConfig, tokenizer: Any = None) -> TextTower:
        """The tower that the config names; one from scratch needs a ``tokenizer``, unless the config names that too.

        Raises:
            MmclError: there is no such model, or it cannot be read.
        """
        if config.name.startswith("open_clip:"):
            from mmcl.models.open_clip_models import build_text_tower

            tower: TextTower = build_text_tower(config)
        elif config.name != "scratch":
            if isinstance(config.pretrained, str):
                raise MmclError(f"text model '{config.name}': 'pretrained' is true or false for a transformers model")
            tower = cls.open(config.name, weights=config.pretrained, max_tokens=config.max_tokens)
            tower.pooling = config.pooling or tower.pooling
        else:
            tower = cls._scratch(config, tokenizer)
        if config.checkpointing:
            checkpoint_activations(tower.net, f"model.text.checkpointing: '{config.name}'")
        return tower

    @classmethod
    def _scratch(cls, config: TextTowerConfig, tokenizer: Any) -> TextTower:
        from transformers import BertConfig, BertModel

        if tokenizer is None:
            if config.tokenizer.name is None:
                raise MmclError("model.text: a tower from scratch needs a tokenizer; set model.text.tokenizer.name")
            tokenizer = open_tokenizer(config.tokenizer.name)
        max_tokens = config.max_tokens or SCRATCH_MAX_TOKENS
        architecture = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=max_tokens,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=tokenizer.pad_token_id,
        )
        return cls(BertModel(architecture), tokenizer, pooling=config.pooling or "mean", max_tokens=max_tokens)

    @classmethod
    def open(cls, name: str, weights: bool = True, max_tokens: int | None = None) -> TextTower:
        """A transformers or sentence-transformers model by folder, hub name or ``sample:NAME``.

        Raises:
            MmclError: there is no such model, it cannot be read, or it has fewer positions than ``max_tokens``.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        folder = local_folder(name)
        settings = _sentence_transformers_settings(folder)
        source = folder / settings["transformer"]
        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(source, trust_remote_code=False)
                if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "vocab_size"):
                    raise ValueError(f"a '{config.model_type}' model is no encoder of texts")
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                if weights:
                    net = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
                else:
                    net = AutoModel.from_config(config)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise MmclError(f"text model '{name}': cannot be opened as a transformers encoder: {reason}") from None
        positions = min(_positions(net), tokenizer.model_max_length)
        if max_tokens is not None and max_tokens > positions:
            raise MmclError(f"model.text.max_tokens is {max_tokens}, but '{name}' reads at most {int(positions)}")
        limit = max_tokens or min(settings["max_tokens"] or positions, positions)
        pooling, prompts = settings["pooling"], settings["prompts"]
        return cls(net, tokenizer, pooling=pooling, max_tokens=int(limit), prompts=prompts)

    def spec(self) -> dict[str, Any]:
        """What rebuilds this tower, weights and tokenizer files apart."""
        return {
            "config": self.net.config.to_diff_dict(),
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "prompts": self.prompts,
            **({"architecture": type(self.net).__name__} if self.pooling == "pooled" else {}),
            **({"padded": self.padded, "masked": self.masked} if self.padded else {}),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> TextTower:
        """Rebuild what ``spec`` describes, with fresh weights; the tokenizer is read from ``folder``."""
        if spec.get("library") == "open_clip":
            from mmcl.models.open_clip_text import OpenClipTextTower

            return OpenClipTextTower.from_spec(spec, folder)
        from transformers import AutoTokenizer

        net = rebuild(spec["config"], spec.get("architecture"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise MmclError(f"{folder}: the tokenizer's files are missing or damaged ({error})") from None
        optional = {name: spec[name] for name in ("prompts", "padded", "masked") if name in spec}
        return cls(net, tokenizer, pooling=spec["pooling"], max_tokens=spec["max_tokens"], **optional)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's own files."""
        for name in ("is_local", "local_files_only"):  # how it was loaded, noted as if it were a setting
            self.tokenizer.init_kwargs.pop(name, None)
        self._forget_limits()
        with full_disk_is_oserror(folder):
            self.tokenizer.save_pretrained(folder)

    def key(self) -> str:
        """Changes whenever :meth:`tokenize` would give something else."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return f"{stable_hash(content):x}-{self.max_tokens}"

    def _forget_limits(self) -> None:
        """Fast tokenizers keep the last call's truncation and padding, and would save them as if they were settings."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[list[np.ndarray], int]:
        """Token ids of each text, int32, cut at ``max_tokens``; and how many texts were cut.

        Raises:
            MmclError: ``prompt`` is not the name of one of the model's prompts.
        """
        if prompt is not None:
            if prompt not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none"
                raise MmclError(f"prompt '{prompt}': the model has no prompt of that name; it has: {known}")
            texts = [self.prompts[prompt] + text for text in texts]
        # A lone surrogate is no Unicode text, and the tokenizers refuse it: it reads as '?'.
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return self._encode(texts) if texts else ([], 0)

    def _encode(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        encoded = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        long = [position for position, ids in enumerate(encoded) if len(ids) > self.max_tokens]
        if long:
            cut = self.tokenizer(
                [texts[position] for position in long],
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=False,
            )["input_ids"]
            for position, ids in zip(long, cut, strict=True):
                encoded[position] = ids
            self._forget_limits()
        return [np.asarray(ids, dtype=np.int32) for ids in encoded], len(long)

    def collate(self, tokens: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Pad to the longest: ``input_ids`` and ``attention_mask``, both int64 (N, L)."""
        longest = max(1, max(len(ids) for ids in tokens))
        input_ids = torch.full((len(tokens), longest), self._padding_id(), dtype=torch.int64)
        mask = torch.zeros((len(tokens), longest), dtype=torch.int64)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, width) features of (N, L) token ids and their mask."""
        input_ids, attention_mask = self._fill_up(input_ids, attention_mask)
        output = self.net(input_ids=input_ids, attention_mask=attention_mask if self.masked else None)
        if self.pooling == "pooled":
            return own_vector(output)
        return pool(output.last_hidden_state, attention_mask, self.pooling)

    def _fill_up(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """With padding, for a model that reads it."""
        missing = self.padded - input_ids.shape[1]
        if missing <= 0:
            return input_ids, attention_mask
        return F.pad(input_ids, (0, missing), value=self._padding_id()), F.pad(attention_mask, (0, missing))

    def _padding_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def _check_vocabulary(self) -> None:
        if len(self.tokenizer) > self.net.config.vocab_size:
            raise MmclError(
                f"the tokenizer has {len(self.tokenizer)} entries but the model only {self.net.config.vocab_size}; "
                "they do not belong together"
            )

    @torch.no_grad()
    def _measure_width(self) -> int:
        """Ask the network itself: libraries disagree about the attribute that holds the width after projection."""
        training = self.net.training
        self.net.eval()
        ids = torch.zeros(1, self.max_tokens, dtype=torch.int64)
        width = self(ids, torch.ones_like(ids)).shape[1]
        self.net.train(training)
        return int(width)


def _positions(net: Any) -> float:
    """How many tokens a text may have."""
    count = getattr(net.config, "max_position_embeddings", math.inf)
    # RoBERTa and its kin count positions from behind the padding's number, so that they have fewer than they hold.
    skipped = getattr(getattr(getattr(net, "embeddings", None), "position_embeddings", None), "padding_idx", None)
    return count if skipped is None else count - skipped - 1


def local_folder(name: str) -> Path:
    """The folder of a model: itself, a sample's, or a snapshot of a hub name.

    Raises:
        MmclError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    if name.startswith("sample:"):
        return samples.get(name.removeprefix("sample:"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    files = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MmclError(f"'{name}': no such folder, and not to be had from the hub ({reason})") from None


def _sentence_transformers_settings(folder: Path) -> dict[str, Any]:
    """Pooling, length limit, prompts and place of the transformer; defaults for a plain transformers folder."""
    settings: dict[str, Any] = {"pooling": "mean", "max_tokens": None, "prompts": {}, "transformer": ""}
    modules: Any = _read_json(folder / "modules.json") or []
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Transformer":
            settings["transformer"] = module["path"]
            limits = _read_json(folder / module["path"] / "sentence_bert_config.json")
            settings["max_tokens"] = limits.get("max_seq_length")
        elif kind == "Pooling":
            settings["pooling"] = _pooling(folder / module["path"])
        elif kind != "Normalize":
            raise MmclError(f"{folder}: its layer '{kind}' is not supported; use a model without it")
    settings["prompts"] = _read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return settings


def _pooling(folder: Path) -> str:
    """sentence-transformers has spelled it as one flag each, and as one name."""
    config = _read_json(folder / "config.json")
    flags = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_lasttoken": "last",
        "pooling_mode_mean_tokens": "mean",
    }
    chosen = [name for flag, name in flags.items() if config.get(flag)] or [config.get("pooling_mode", "mean")]
    if len(chosen) > 1 or chosen[0] not in POOLINGS:
        how = "+".join(map(str, chosen))
        raise MmclError(f"{folder}: pooling {how} is not supported; use one of {', '.join(POOLINGS)}")
    return str(chosen[0])


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
