"""An image tower for images of another size than its network was trained with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from mmcl.data.processors.image import ImageProcessor
from mmcl.formats.towers.image import rebuild_net
from mmcl.models.image.positions import fit_positions
from mmcl.models.image.tower import ImageTower
from mmcl.runtime.errors import MmclError, first_line

log = logging.getLogger("mmcl")


def resize_image_tower(
    processor: ImageProcessor, tower: ImageTower, size: int, name: str
) -> tuple[ImageProcessor, ImageTower]:
    """Processor and tower for images of ``size`` pixels, with the weights of ``tower``.

    Position embeddings learned for a grid of patches are interpolated to the other grid, as
    ``open_clip.model.resize_pos_embed`` does.

    Args:
        processor: of ``tower``.
        tower: taken to pieces.
        size: side of the images, in pixels.
        name: of the model, for messages.

    Raises:
        MmclError: the network reads images of its own size only.
    """
    library = tower.spec.get("library")
    way = _WAYS.get(str(library), _by_timm)
    try:
        net, spec, how = way(tower.net, tower.spec, processor.size, size)
        resized = replace(processor, size=size, resize=_scaled(processor, size))
        tower = ImageTower(net, spec, resized)
    except Exception as error:  # what a constructor meets in a size that its network is not made for
        raise MmclError(
            f"data.image.size is {size}, but '{name}' takes {processor.size} and cannot be changed "
            f"({first_line(error)}); leave it out"
        ) from None
    log.info("'%s' takes images of %d pixels from now on, rather than %d: %s", name, size, processor.size, how)
    return resized, tower


_Resized = tuple[Any, dict[str, Any], str]


def _by_open_clip(net: Any, spec: Mapping[str, Any], old: int, size: int) -> _Resized:
    if hasattr(net, "set_input_size"):  # a network of timm's within open_clip's, which interpolates by itself
        net.set_input_size(size)
        return net, {**spec, "resized": True}, "timm has fitted its network"
    return _rebuilt(net, {**spec, "config": _with_size(spec["config"], ("vision_cfg", "image_size"), size)}, size)


def _by_transformers(net: Any, spec: Mapping[str, Any], old: int, size: int) -> _Resized:
    native = spec["config"].get("image_size", getattr(net.config, "image_size", None))
    if native != old:  # it has no such size, or interpolates whenever it is used
        return net, dict(spec), "its network reads any size"
    return _rebuilt(net, {**spec, "config": _with_size(spec["config"], ("image_size",), size)}, size)


def _by_timm(net: Any, spec: Mapping[str, Any], old: int, size: int) -> _Resized:
    if not hasattr(net, "set_input_size"):
        return net, dict(spec), "its network reads any size"
    net.set_input_size(img_size=size)
    return net, dict(spec), "timm has fitted its network"


_WAYS: dict[str, Callable[[Any, Mapping[str, Any], int, int], _Resized]] = {
    "open_clip": _by_open_clip,
    "transformers": _by_transformers,
}
"""By the library that an image tower's spec says its network is of; timm's, and our own ResNets, say none."""


def _rebuilt(net: Any, spec: dict[str, Any], size: int) -> _Resized:
    """A new network of ``spec``, with the weights of ``net``."""
    new = rebuild_net({**spec, "size": size})
    own = new.state_dict()
    state = net.state_dict()
    changed = [name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape]
    new.load_state_dict(fit_positions(state, own))
    new.train(net.training)
    how = f"{', '.join(changed)} interpolated" if changed else "its network reads any size"
    return new, spec, how


def _with_size(config: Mapping[str, Any], path: tuple[str, ...], size: int) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    *outer, last = path
    section = changed
    for key in outer:
        section = section[key]
    section[last] = size
    return changed


def _scaled(processor: ImageProcessor, size: int) -> str:
    """The resize mode in which a side before the cut, as 256 for 224 pixels, is as much larger than ``size``."""
    if processor.patch is not None:  # whose number is that of a patch's pixels
        return processor.resize
    parts = processor.resize.split("-")
    return "-".join(str(round(int(part) * size / processor.size)) if part.isdecimal() else part for part in parts)
