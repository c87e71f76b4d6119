"""Which of transformers' classes a model is built as, where its config alone leaves that open."""

from __future__ import annotations

from typing import Any

from mmcl.runtime.errors import MmclError

ENCODERS = {
    "t5": "T5EncoderModel",  # sentence-t5, gtr
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
"""Model types of an encoder and a decoder whose texts are embedded by the encoder, to the class that is the encoder
alone: the decoder is not loaded. sentence-transformers takes them so."""

DECODER_STATES = ("bart", "mbart", "plbart")
"""Model types of an encoder and a decoder that are taken in full. sentence-transformers opens them by ``AutoModel``,
whose ``last_hidden_state`` is the decoder's, of the same text shifted by one token; these are what it pools."""


def text_class(config: Any, where: str) -> Any:
    """What opens the text encoder that ``config`` describes: a class of transformers', mostly ``AutoModel``.

    Raises:
        MmclError: it describes no encoder of texts.
    """
    import transformers

    kind = config.model_type
    if kind in ENCODERS:
        return getattr(transformers, ENCODERS[kind])
    if getattr(config, "is_encoder_decoder", False) and kind not in DECODER_STATES:
        known = ", ".join([*ENCODERS, *DECODER_STATES])
        raise MmclError(
            f"{where}: a '{kind}' model has a decoder, and is no encoder of texts; of such models {known} are read"
        )
    if not hasattr(config, "vocab_size"):
        raise MmclError(f"{where}: a '{kind}' model is no encoder of texts; choose a model of texts")
    return transformers.AutoModel


def named_class(name: str) -> Any:
    """transformers' model class of this name.

    Raises:
        MmclError: this version of transformers has none.
    """
    import transformers

    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise MmclError(f"transformers {transformers.__version__} has no model '{name}'; upgrade it")
    return kind


def with_fresh_weights(kind: Any, config: Any) -> Any:
    """A model of the class ``kind``, or of that which ``AutoModel`` finds."""
    import transformers

    if kind is transformers.AutoModel:
        return kind.from_config(config, trust_remote_code=False)
    return kind(config)
