"""Image processors of transformers: what one does to an image, in the words of an image tower's spec."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mmcl.data.processors.image import ImageProcessor
from mmcl.formats.transformers.nets import quiet_transformers
from mmcl.runtime.errors import MmclError, first_line

_FILES = ("preprocessor_config.json", "processor_config.json")
_LARGEST = 16_384  # pixels
_PLAIN = ("preprocess", "_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize")


def read_processor(source: str | Path, where: str) -> Any:
    """The image processor in a folder or on the hub, with what its kind does by default; None if there is none.

    Raises:
        MmclError: transformers does not open it, or only by running code that comes with it.
    """
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with quiet_transformers():
            try:
                ImageProcessingMixin.get_image_processor_dict(source)
            except OSError:
                if any((Path(source) / name).is_file() for name in _FILES):  # but it is no JSON
                    raise
                return None
            return AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
    except Exception as error:  # whatever the constructors of a hundred processors meet
        raise MmclError(f"{where}: its image processor cannot be opened: {first_line(error)}") from None


def default_processor(config: Any, where: str) -> Any:
    """What a model with ``config``, of a vision half or of both, is used with where its folder says nothing of images.

    Raises:
        MmclError: that is not known for models of its type.
    """
    import transformers

    kind = config.model_type.removesuffix("_vision_model")
    if kind not in _DEFAULTS:
        raise MmclError(f"{where}: has no image processor; put the model's preprocessor_config.json into its folder")
    name, sizes = _DEFAULTS[kind]
    return getattr(transformers, name)(**sizes(getattr(config, "vision_config", config)))


def _squashed(config: Any) -> dict[str, Any]:
    return {"size": {"height": config.image_size, "width": config.image_size}}


def _cropped(config: Any) -> dict[str, Any]:
    side = config.image_size
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def _in_patches(config: Any) -> dict[str, Any]:
    return {"patch_size": config.patch_size, "max_num_patches": config.num_patches}


_DEFAULTS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "clip": ("CLIPImageProcessorPil", _cropped),
    "metaclip_2": ("CLIPImageProcessorPil", _cropped),
    "chinese_clip": ("ChineseCLIPImageProcessorPil", _cropped),
    "siglip": ("SiglipImageProcessorPil", _squashed),
    "siglip2": ("Siglip2ImageProcessorPil", _in_patches),
}
"""Model type, of both halves, to transformers' image processor of it, and what that takes from the vision config."""


def preprocessing(processor: Any, where: str) -> ImageProcessor:
    """What gives the net the input that transformers' ``processor`` gives it.

    Raises:
        MmclError: the processor does something else than to resize to a square, cut the centre out, rescale and
            normalise; or than to resize to patches, as SigLIP 2's does.
    """
    from transformers import Siglip2ImageProcessorPil
    from transformers.image_processing_backends import PilBackend, TorchvisionBackend

    if isinstance(processor, Siglip2ImageProcessorPil):
        mean, std = colours(processor, where)
        return ImageProcessor(**_patches(processor, where), mean=mean, std=std)
    kind = type(processor)
    base: type | None = next((each for each in (PilBackend, TorchvisionBackend) if isinstance(processor, each)), None)
    if base is None or any(getattr(kind, name) is not getattr(base, name) for name in _PLAIN):
        raise _refused(where, f"{kind.__name__} has steps of its own")
    for setting in ("do_pad", "do_flip_channel_order", "do_convert_grayscale", "do_thumbnail"):
        if getattr(processor, setting, None):
            raise _refused(where, f"{setting} is set")
    if processor.do_normalize and (processor.image_mean is None or processor.image_std is None):
        raise _refused(where, "image_mean or image_std is missing", "lists of three numbers")
    mean, std = colours(processor, where)
    return ImageProcessor(**_geometry(processor, where), mean=mean, std=std)


def colours(processor: Any, where: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation to normalise levels from 0 to 1 by, which hold the processor's own factor as well.

    Raises:
        MmclError: they are not those of three channels.
    """
    factor = 1.0
    if _does(processor, "do_rescale"):
        factor = _number(getattr(processor, "rescale_factor", 1 / 255) or 0.0, "rescale_factor", where)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if _does(processor, "do_normalize"):
        mean, std = (_channels(processor, name, where) for name in ("image_mean", "image_std"))
    if factor == 0.0 or 0.0 in std:
        raise _refused(where, "rescale_factor or image_std is 0", "numbers above 0")
    if (factor, offset) == (1 / 255, 0.0):
        return mean, std
    return [(value + offset) / (255 * factor) for value in mean], [value / (255 * factor) for value in std]


def _does(processor: Any, step: str) -> bool:
    return bool(getattr(processor, step, True))


def _channels(processor: Any, name: str, where: str) -> list[float]:
    value = getattr(processor, name, None)
    if value is None:
        return [0.5] * 3
    values = [_number(each, name, where) for each in (value if isinstance(value, list | tuple) else [value] * 3)]
    if len(values) != 3:
        raise _refused(where, f"{name} is of {len(values)} channels", "one number or three")
    return values


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refused(where, f"{name} holds {str(value)[:40]!r}, which is no number", "numbers")
    return float(value)


def _geometry(processor: Any, where: str) -> dict[str, Any]:
    size = {key: value for key, value in dict(processor.size or {}).items() if value is not None}
    crop = None
    if getattr(processor, "do_center_crop", None):
        crop = _square(dict(processor.crop_size or {}), "crop_size", where)
    if not _does(processor, "do_resize"):
        if crop is None:
            raise _refused(where, "do_resize and do_center_crop are false, so that images keep their sizes")
        return {"size": crop, "resize": "keep-floor"}
    suffix = _filter(processor, where)
    if size.keys() == {"height", "width"}:
        side = _square(size, "size", where)
        if crop is None or crop == side:
            return {"size": side, "resize": f"squash{suffix}"}
        return {"size": crop, "resize": f"squash-{side}-floor{suffix}"}
    if size.keys() == {"shortest_edge"} and crop is not None:
        side = _side(size["shortest_edge"], "size", where)
        return {"size": crop, "resize": f"crop-floor{suffix}" if side == crop else f"crop-{side}-floor{suffix}"}
    if size.keys() == {"shortest_edge"}:
        raise _refused(where, "size is that of the shortest edge and do_center_crop is false: no square comes out")
    raise _refused(where, f"size names {' and '.join(sorted(size)) or 'nothing'}")


def _patches(processor: Any, where: str) -> dict[str, Any]:
    """Images of any shape, as patches: of SigLIP 2's NaFlex."""
    patch = _side(processor.patch_size, "patch_size", where)
    grid = math.isqrt(_side(processor.max_num_patches, "max_num_patches", where))
    if grid**2 != processor.max_num_patches or not _does(processor, "do_resize"):
        what = f"max_num_patches is {processor.max_num_patches} and do_resize {processor.do_resize}"
        raise _refused(where, what, "do_resize true and the square of a whole number, such as 256")
    return {"size": grid * patch, "resize": f"patches-{patch}{_filter(processor, where)}"}


def _filter(processor: Any, where: str) -> str:
    """The variant of a resize mode that names the filter; none for bicubic."""
    try:
        filter = Image.Resampling(processor.resample).name.lower()
    except ValueError:
        raise _refused(where, f"resample {processor.resample} is no filter of Pillow's") from None
    return "" if filter == "bicubic" else f"-{filter}"


def _square(size: dict[str, Any], name: str, where: str) -> int:
    height, width = size.get("height"), size.get("width")
    if not height or height != width:
        raise _refused(where, f"{name} is {height} × {width}; only squares are supported")
    return _side(height, name, where)


def _side(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise _refused(where, f"{name} is {str(value)[:40]!r}, not a whole number of pixels from 1 to {_LARGEST:,}")
    return value


def _refused(where: str, why: str, to: str = "a square size or to shortest_edge with a square crop_size") -> MmclError:
    return MmclError(f"{where}: its image processor cannot be followed: {why}; change preprocessor_config.json to {to}")
