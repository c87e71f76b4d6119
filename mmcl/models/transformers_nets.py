"""What the towers that come from transformers share: opening quietly, rebuilding, a model's own vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmcl.runtime.errors import MmclError


def rebuild(config: Mapping[str, Any], architecture: str | None = None) -> Any:
    """A model with fresh weights from what ``config.to_diff_dict()`` gave.

    Args:
        config: with its ``model_type``.
        architecture: the class, such as ``CLIPTextModelWithProjection``; the type's base model if absent.

    Raises:
        MmclError: this version of transformers has no such architecture.
    """
    import transformers

    settings = dict(config)
    described = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    if architecture is None:
        return transformers.AutoModel.from_config(described)
    kind = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise MmclError(f"transformers {transformers.__version__} has no model '{architecture}'; upgrade it")
    return kind(described)


def own_vector(output: Any) -> Tensor:
    """(N, D): the one vector an input that a transformers model gives itself: projected where it projects."""
    for name in ("text_embeds", "image_embeds", "pooler_output"):
        if (vector := getattr(output, name, None)) is not None:
            return vector.flatten(1)  # convolutional models pool to (N, D, 1, 1)
    raise ValueError("the model gives no vector of its own")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and its report on the pooler that is left out on purpose."""
    from transformers.utils import logging as settings

    verbosity, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()
