"""What training may change about a tower's activations: recompute them, or leave some patches out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmcl.runtime.errors import MmclError


def checkpoint_activations(net: Any, where: str) -> None:
    """Let the backward pass compute activations again instead of keeping them.

    Args:
        net: of a tower.
        where: setting and model, for the message.

    Raises:
        MmclError: the network does not support it.
    """
    net = getattr(net, "trunk", net)  # timm's, within open_clip's wrapper
    hugging = next((each for each in (net, getattr(net, "transformer", None)) if _is_hugging(each)), None)
    if hugging is not None and hugging.supports_gradient_checkpointing:
        if getattr(hugging.config, "use_cache", False):
            hugging.config.use_cache = False  # an encoder has no use for it, and transformers warns of the two together
        if enable := getattr(hugging, "activation_checkpointing_enable", None):
            enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            hugging.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    enable = getattr(net, "set_grad_checkpointing", None)
    unable = MmclError(f"{where} does not support it; set it to false")
    # open_clip's ResNet takes the call and does nothing.
    if hugging is not None or enable is None or type(net).__name__ == "ModifiedResNet":
        raise unable
    try:
        enable(True)
    except AssertionError:  # how timm's networks say so
        raise unable from None


def drop_patches(net: Any, rate: float, size: int, where: str) -> None:
    """Leave out a random ``rate`` of the patches in training (FLIP, Li et al. 2022, arXiv:2212.00794).

    Args:
        net: of an image tower: a vision transformer of open_clip, timm or transformers.
        rate: in [0, 1).
        size: side of its input, in pixels.
        where: setting and model, for the message.

    Raises:
        MmclError: the network has no patches to drop, or cannot do without some.
    """
    from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices

    net = getattr(net, "trunk", net)
    embeddings = getattr(getattr(net, "vision_model", net), "embeddings", None)
    if hasattr(net, "patch_dropout") and hasattr(net, "class_embedding"):  # open_clip's own transformer
        net.patch_dropout = PatchDropout(rate) if rate else nn.Identity()
    elif hasattr(net, "patch_drop") and hasattr(net, "num_prefix_tokens"):
        kind = PatchDropout if isinstance(net.patch_drop, (nn.Identity, PatchDropout)) else PatchDropoutWithIndices
        net.patch_drop = kind(rate, num_prefix_tokens=net.num_prefix_tokens)
    elif embeddings is not None and isinstance(getattr(net.config, "patch_size", None), int):
        _drop_after(embeddings, rate, (size // net.config.patch_size) ** 2)
    else:
        raise MmclError(f"{where} has no patches that could be dropped; set it to 0")


def _drop_after(embeddings: nn.Module, rate: float, patches: int) -> None:
    """transformers has no such module: a hook on the embeddings does it, so that no parameter changes its name."""
    from timm.layers.patch_dropout import PatchDropout

    def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return PatchDropout(rate, num_prefix_tokens=output.shape[1] - patches).train(module.training)(output)

    embeddings.register_forward_hook(drop)


def _is_hugging(net: Any) -> bool:
    return hasattr(net, "supports_gradient_checkpointing")
