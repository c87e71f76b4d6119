"""Text towers by ``KEY:NAME``: our bags of tokens, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmcl.config.model import TextTowerConfig
from mmcl.data.processors.text import TextProcessor
from mmcl.data.processors.tokenize import drop_special_tokens
from mmcl.models.text.limits import UNLIMITED
from mmcl.models.text.plain import PlainTextTower
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.registry import Registry

TEXT_TOWERS: Registry[Callable[[str, TextTowerConfig, int], nn.Module]] = Registry(
    "mmcl.text_towers", "text tower", {"bag": "mmcl.models.text.token_bag:token_bag"}
)
"""What makes the network of ``KEY:NAME``, from NAME, the tower's settings and the number of tokens in the vocabulary.

The network maps (N, L) token ids and their mask, both int64, to (N, width) features. Its tokenizer is trained on the
texts of the run, or is that of ``tokenizer.name``. A model folder is read by the same call: with the name, ``args``,
``layers``, ``width``, ``heads`` and ``dropout`` that it had, and ``pretrained`` false. A network with a method
``start`` is handed the tokenizer when it is new, before any weights; one with a true attribute ``bare`` reads no
special tokens, and an id behind the last of the vocabulary for a text without any token. Another package adds its own
by the entry-point group ``mmcl.text_towers``."""

MAX_TOKENS = 64
"""Texts of new towers are cut here by default."""

_REBUILDS = ("name", "args", "layers", "width", "heads", "dropout")


def is_registered(name: str) -> bool:
    """Whether ``name`` is ``KEY:NAME`` with a key of ``TEXT_TOWERS``."""
    key, _, model = name.partition(":")
    return bool(model) and key in TEXT_TOWERS


def new_tower(config: TextTowerConfig, tokenizer: Any) -> tuple[TextProcessor, PlainTextTower]:
    """A new tower behind the processor of its texts.

    Raises:
        MmclError: there is no such network, or it cannot be made.
    """
    net: Any = _net(config, len(tokenizer))
    bare = getattr(net, "bare", False)
    if bare:
        drop_special_tokens(tokenizer)
    max_tokens = config.max_tokens or (UNLIMITED if bare else MAX_TOKENS)
    processor = TextProcessor(tokenizer, max_tokens=max_tokens, padding_id=len(tokenizer) if bare else None)
    if hasattr(net, "start"):
        net.start(tokenizer)
    return processor, around(net, config, processor)


def around(net: nn.Module, config: TextTowerConfig, processor: TextProcessor) -> PlainTextTower:
    """The tower of the network that ``config`` describes, behind ``processor``."""
    with _making(config.name):
        return PlainTextTower(net, processor, config.model_dump(include={*_REBUILDS}))


def rebuild(spec: dict[str, Any], processor: TextProcessor) -> PlainTextTower:
    """Of the ``spec`` of a tower, with fresh weights; without those that a package may know of.

    Raises:
        MmclError: the package that has it is not installed.
    """
    if not is_registered(spec["name"]):
        raise MmclError(f"text tower '{spec['name']}': no package that is installed has it; install the one that does")
    config = TextTowerConfig(**{name: spec[name] for name in _REBUILDS}, pretrained=False)
    return around(_net(config, len(processor.tokenizer)), config, processor)


def _net(config: TextTowerConfig, entries: int) -> nn.Module:
    key, _, model = config.name.partition(":")
    with _making(config.name):
        return TEXT_TOWERS[key](model, config, entries)


@contextmanager
def _making(name: str) -> Iterator[None]:
    try:
        yield
    except MmclError:
        raise
    except Exception as error:  # whatever the code of another package meets
        raise MmclError(
            f"text tower '{name}': {TEXT_TOWERS.origin(name.partition(':')[0])} cannot make it "
            f"({type(error).__name__}: {first_line(error)}); check its name and model.text.args"
        ) from error
