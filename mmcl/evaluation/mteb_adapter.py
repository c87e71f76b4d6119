"""An encoder as mteb takes it (Muennighoff et al. 2023, arXiv:2210.07316), to be judged by its tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmcl.encoding.encoder import Encoder
from mmcl.formats.weights import weights_hash
from mmcl.runtime.errors import MmclError


def mteb_model(encoder: Encoder, name: str | None = None) -> MtebModel:
    """An object of mteb's ``EncoderProtocol`` (mteb 2): ``mteb.evaluate(mteb_model(encoder), tasks)``.

    Args:
        encoder: its own batches, cosine similarity, and prompts are used. Of the prompts, mteb chooses by their names:
            ``TASK-query``, ``TASK``, ``TYPE-query``, ``TYPE``, ``query``; and so for ``document``, for which a model's
            ``passage`` stands too. Where none fits, the model's default prompt, if it has one.
        name: ``organization/model``, under which mteb keeps results; made from the encoder's own name if absent.
            The revision is a hash of the weights.

    What is ranked is mteb's to say: of tasks whose queries stand in their corpus (ArguAna, Quora) it leaves each out of
    its own ranking, as ``beir_retrieval`` does by default, and ``retrieval`` with ``self_matches="drop"``.

    Raises:
        MmclError: mteb is not installed.
    """
    try:
        from mteb.models import ModelMeta
    except ImportError:
        raise MmclError("mteb_model needs the package mteb: pip install 'mteb>=2'") from None
    own = re.sub(r"[^\w.-]+", "-", encoder.name).strip("-.") or "encoder"
    settings = {
        "name": name or f"mmcl/{own}",
        "revision": weights_hash(encoder.towers)[:40],
        "embed_dim": encoder.dim,
        "n_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "max_tokens": encoder.towers.text().processor.max_tokens if "text" in encoder.modalities else None,
        "modalities": sorted(encoder.modalities),
        "framework": ["PyTorch"],
        "similarity_fn_name": "cosine",
        "use_instructions": bool(encoder.prompts),
    }
    # Every field that mteb has and that is not known here is None; it has more with every version.
    return MtebModel(encoder, ModelMeta(**{**ModelMeta.create_empty().model_dump(), **settings}))


class MtebModel:
    """What :func:`mteb_model` gives.

    Attributes:
        mteb_model_meta: mteb's description of the model.
    """

    def __init__(self, encoder: Encoder, meta: Any) -> None:
        self._encoder = encoder
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
        **_: Any,
    ) -> np.ndarray:
        """(N, D) vectors of unit length, in the order of the inputs.

        Args:
            inputs: batches, mappings with ``text`` or ``image``, in which mteb's data loader gives them.
            task_metadata, prompt_type: what the prompt is chosen by.
            hf_split, hf_subset: not read.
            show_progress_bar, precision: as ``show_progress`` and ``precision`` of :meth:`Encoder.encode`.

        Raises:
            MmclError: the inputs have text and images at once, which is one vector to mteb, or neither.
        """
        batches = list(inputs)
        kinds = {kind for batch in batches for kind in batch if kind in ("text", "image", "audio", "video")}
        if batches and kinds not in ({"text"}, {"image"}):
            found = " and ".join(sorted(kinds)) or "neither"
            raise MmclError(f"mteb task '{task_metadata.name}': its inputs are {found}; texts or images can be encoded")
        modality = kinds.pop() if kinds else None
        items = [item for batch in batches for item in batch[str(modality)]]
        prompt = self._prompt(task_metadata, prompt_type) if modality == "text" else None
        vectors: np.ndarray = self._encoder.encode(
            items, modality=modality, prompt=prompt, show_progress=show_progress_bar, precision=precision
        )
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(N, M) cosines of every vector of the first with every one of the second, a tensor."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(N,) cosines of corresponding vectors, a tensor."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _prompt(self, task_metadata: Any, prompt_type: Any) -> str | None:
        """The name of the model's prompt for a task and a side of it."""
        from mteb.models.abs_encoder import get_prompt_name

        prompts = self._encoder.prompts
        alias = "passage" if "passage" in prompts and "document" not in prompts else "document"
        known = prompts | ({"document": prompts["passage"]} if alias == "passage" else {})
        chosen: str | None = get_prompt_name(known, task_metadata, prompt_type)
        return alias if chosen == "document" else chosen
