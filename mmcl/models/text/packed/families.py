"""The families of transformers that run packed, from transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmcl.models.text.packed.description import Description, LayerDescription, Rotary

_NORMS = ("LayerNorm", "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
_FIXED_ROTARY = ("default", "linear", "yarn", "llama3")
"""Kinds of rotary positions whose frequencies do not depend on the longest text of a batch."""


def describe(net: Any) -> Description | None:
    """How ``net`` computes; None for what is of no known family, or is not as transformers made it.

    Adapters, quantised or compiled layers and hooks are other modules than the plain ones, and are not described.
    """
    kind = type(net).__name__
    if kind not in _FAMILIES or not type(net).__module__.startswith("transformers."):
        return None
    config = net.config
    # What chunks the feed-forward network, or attends otherwise than its family, is left to transformers.
    if getattr(config, "chunk_size_feed_forward", 0) or getattr(config, "is_decoder", False):
        return None
    if getattr(config, "is_causal", True) is False:
        return None
    described = _FAMILIES[kind](net)
    return described if described is not None and _is_plain(net, described) else None


def described_with_dropout(net: Any) -> Description | None:
    """How ``net`` computes in training; None where it has dropout that is not described, or :func:`describe` has."""
    described = describe(net)
    if described is None:
        return None
    known = {id(described.embeddings_dropout)}
    for layer in described.layers:
        known |= {id(layer.weights_dropout), id(layer.attended_dropout), id(layer.down_dropout)}
    others = [part.p for part in net.modules() if isinstance(part, nn.Dropout) and id(part) not in known]
    if described.layers[0].weights_dropout is None:
        others.append(getattr(net.config, "attention_dropout", 0.0))
    return None if any(others) else described


def _is_plain(net: nn.Module, described: Description) -> bool:
    parts = [module for name, module in net.named_modules() if not name.startswith("pooler")]
    linear = {id(part) for part in parts if isinstance(part, nn.Linear)}
    expected: list[nn.Linear] = []
    norms: list[nn.Module | None] = [described.embeddings_norm, described.final_norm]
    for layer in described.layers:
        expected += [*layer.query_key_value, layer.attended, *layer.up, layer.down]
        norms += [layer.attention_norm, layer.feed_forward_norm, layer.query_norm, layer.key_norm]
    tables = [described.words, described.positions, described.kinds]
    return (
        {id(layer) for layer in expected} == linear
        and all(type(layer) is nn.Linear for layer in expected)
        and all(norm is None or type(norm) is nn.Identity or type(norm).__name__ in _NORMS for norm in norms)
        and all(table is None or type(table) is nn.Embedding for table in tables)
        and not any(_hooked(part) for part in parts)
    )


def _hooked(part: nn.Module) -> bool:
    if part._backward_hooks or part._backward_pre_hooks or part._compiled_call_impl is not None:
        return True
    hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    # Those by which transformers gives the states of all layers change nothing, and stay once these were asked for.
    return any(getattr(hook, "__module__", None) != "transformers.utils.output_capturing" for hook in hooks)


def _bert(net: Any, *, from_padding: bool) -> Description:
    """BERT, and with positions that count from behind the padding's number, RoBERTa and its kin."""
    layers = []
    for layer in net.encoder.layer:
        attention, feed_forward = layer.attention, layer.intermediate
        layers.append(
            LayerDescription(
                query_key_value=[getattr(attention.self, name) for name in ("query", "key", "value")],
                attended=attention.output.dense,
                attention_norm=attention.output.LayerNorm,
                up=[feed_forward.dense],
                activation=feed_forward.intermediate_act_fn,
                down=layer.output.dense,
                feed_forward_norm=layer.output.LayerNorm,
                weights_dropout=attention.self.dropout,
                attended_dropout=attention.output.dropout,
                down_dropout=layer.output.dropout,
            )
        )
    embeddings = net.embeddings
    return _encoder(net, layers)._replace(
        positions=embeddings.position_embeddings,
        position_padding=int(embeddings.padding_idx) if from_padding else None,
        kinds=embeddings.token_type_embeddings,
        embeddings_norm=embeddings.LayerNorm,
        embeddings_dropout=embeddings.dropout,
    )


def _mpnet(net: Any) -> Description:
    """MPNet, whose scores have a bias by relative position, the same in every layer."""
    layers = []
    for layer in net.encoder.layer:
        attention, feed_forward = layer.attention, layer.intermediate
        layers.append(
            LayerDescription(
                query_key_value=[attention.attn.q, attention.attn.k, attention.attn.v],
                attended=attention.attn.o,
                attention_norm=attention.LayerNorm,
                up=[feed_forward.dense],
                activation=feed_forward.intermediate_act_fn,
                down=layer.output.dense,
                feed_forward_norm=layer.output.LayerNorm,
                weights_dropout=attention.attn.dropout,
                attended_dropout=attention.dropout,
                down_dropout=layer.output.dropout,
            )
        )
    embeddings, encoder = net.embeddings, net.encoder

    def score_bias(length: int) -> Tensor:
        bias: Tensor = encoder.compute_position_bias(encoder.relative_attention_bias.weight.new_empty(1, length))[0]
        return bias

    return _encoder(net, layers)._replace(
        positions=embeddings.position_embeddings,
        position_padding=int(embeddings.padding_idx),
        embeddings_norm=embeddings.LayerNorm,
        embeddings_dropout=embeddings.dropout,
        score_bias=score_bias,
    )


def _distilbert(net: Any) -> Description:
    layers = []
    for layer in net.transformer.layer:
        attention, feed_forward = layer.attention, layer.ffn
        layers.append(
            LayerDescription(
                query_key_value=[attention.q_lin, attention.k_lin, attention.v_lin],
                attended=attention.out_lin,
                attention_norm=layer.sa_layer_norm,
                up=[feed_forward.lin1],
                activation=feed_forward.activation,
                down=feed_forward.lin2,
                feed_forward_norm=layer.output_layer_norm,
                weights_dropout=attention.dropout,
                down_dropout=feed_forward.dropout,
            )
        )
    embeddings = net.embeddings
    return _encoder(net, layers)._replace(
        positions=embeddings.position_embeddings,
        embeddings_norm=embeddings.LayerNorm,
        embeddings_dropout=embeddings.dropout,
    )


def _modernbert(net: Any) -> Description | None:
    """ModernBERT: rotary positions, a gated feed-forward network, and layers that attend to near tokens alone."""
    rotary = net.rotary_emb
    if any(kind not in _FIXED_ROTARY for kind in rotary.rope_type.values()):
        return None
    turns: dict[str, Rotary] = {kind: partial(rotary, layer_type=kind) for kind in rotary.layer_types}
    layers = []
    for layer in net.layers:
        near = layer.attention_type == "sliding_attention"
        layers.append(
            LayerDescription(
                query_key_value=[layer.attn.Wqkv],
                attended=layer.attn.Wo,
                attention_norm=layer.attn_norm,
                up=[layer.mlp.Wi],
                gated=True,
                activation=layer.mlp.act,
                down=layer.mlp.Wo,
                feed_forward_norm=layer.mlp_norm,
                window=int(net.config.sliding_window) if near else None,
                rotary=turns[layer.attention_type],
            )
        )
    return _encoder(net, layers)._replace(
        words=net.embeddings.tok_embeddings,
        norm_first=True,
        embeddings_norm=net.embeddings.norm,
        final_norm=net.final_norm,
    )


def _decoder(net: Any) -> Description | None:
    """Llama, Mistral and Qwen: rotary positions, causal attention whose keys serve several heads, SwiGLU."""
    config = net.config
    if net.rotary_emb.rope_type not in _FIXED_ROTARY:
        return None
    types = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    layers = []
    for number, layer in enumerate(net.layers):
        attention, feed_forward = layer.self_attn, layer.mlp
        near = types is None or types[number] == "sliding_attention"
        layers.append(
            LayerDescription(
                query_key_value=[attention.q_proj, attention.k_proj, attention.v_proj],
                query_norm=getattr(attention, "q_norm", None),
                key_norm=getattr(attention, "k_norm", None),
                attended=attention.o_proj,
                attention_norm=layer.input_layernorm,
                up=[feed_forward.gate_proj, feed_forward.up_proj],
                gated=True,
                activation=feed_forward.act_fn,
                down=feed_forward.down_proj,
                feed_forward_norm=layer.post_attention_layernorm,
                window=window - 1 if near and window is not None else None,  # transformers counts the token itself
                rotary=net.rotary_emb,
            )
        )
    return Description(
        words=net.embed_tokens,
        layers=layers,
        heads=int(config.num_attention_heads),
        key_heads=int(config.num_key_value_heads),
        head_width=int(net.layers[0].self_attn.head_dim),
        norm_first=True,
        final_norm=net.norm,
        causal=True,
    )


def _encoder(net: Any, layers: list[LayerDescription]) -> Description:
    """What encoders have in common."""
    config = net.config
    heads = int(config.num_attention_heads)
    return Description(
        words=net.get_input_embeddings(),
        layers=layers,
        heads=heads,
        key_heads=heads,
        head_width=int(config.hidden_size) // heads,
        norm_first=False,
    )


_FAMILIES: dict[str, Callable[[Any], Description | None]] = {
    "BertModel": partial(_bert, from_padding=False),
    "RobertaModel": partial(_bert, from_padding=True),
    "XLMRobertaModel": partial(_bert, from_padding=True),
    "CamembertModel": partial(_bert, from_padding=True),
    "MPNetModel": _mpnet,
    "DistilBertModel": _distilbert,
    "ModernBertModel": _modernbert,
    "LlamaModel": _decoder,
    "MistralModel": _decoder,
    "Qwen2Model": _decoder,
    "Qwen3Model": _decoder,
}
