"""YAML from an unknown hand, read within limits: plain values only, of bounded size and depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mmcl.runtime.errors import MmclError
from mmcl.runtime.printable import short_repr

LONGEST_FILE = 1_000_000
"""Bytes of a file."""
MOST_NODES = 10_000
"""Values in a file, each counted as often as its aliases repeat it."""
DEEPEST = 50
"""Levels of nesting."""

_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


class _Loader(yaml.SafeLoader):
    """YAML, but a key given twice is a mistake, numbers are as YAML 1.2 has them (`1e-3` is one, `1:30` is not 90, and
    `010` not 8), and what looks like a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN - _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        mark = self.peek_event().start_mark
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels", problem_mark=mark)
        if self._count > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_NODES:,} values", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a list or a section cannot be a key", problem_mark=key.start_mark)
            if key.value in keys:
                problem = f"the key {short_repr(key.value)} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError) as error:  # such as `!!int x`, or a number of 5,000 digits
            kind, value = node.tag.rpartition(":")[2], short_repr(node.value)
            raise yaml.MarkedYAMLError(
                problem=f"{value} cannot be read as {kind}", problem_mark=node.start_mark
            ) from error


for _tag, _pattern in {
    "int": r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+)",
    "float": r"[-+]?(\d[\d_]*\.[\d_]*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The value that ``text`` describes.

    Raises:
        yaml.YAMLError: it is not YAML, or beyond the limits.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values in ``node``, with what its aliases repeat; raises ``yaml.YAMLError`` if there are too many."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.MarkedYAMLError(problem="an alias stands inside of what it names", problem_mark=node.start_mark)
        return size
    if node.tag not in _PLAIN:
        problem = f"the tag {short_repr(node.tag)} is not known here; leave it out"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    known[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        size += sum(_size(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(part, known) for part in node.value)
    if size > MOST_NODES:
        problem = f"more than {MOST_NODES:,} values, counting what aliases repeat"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    known[id(node)] = size
    return size


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        MmclError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if path.suffix.lower() in _TABLES:
            raise MmclError(f"{path}: not a config but a table, which data.train.source of a config names")
        if len(content) > LONGEST_FILE:
            raise MmclError(f"{path}: longer than {LONGEST_FILE / 1e6:g} MB; {_WHAT_A_CONFIG_IS}")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise MmclError(f"{path}: no such config file; the ready ones are in configs/") from None
    except UnicodeDecodeError:
        raise MmclError(f"{path}: not UTF-8 text; {_WHAT_A_CONFIG_IS}") from None
    except OSError as error:
        raise MmclError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise MmclError(f"{path}{line}: not valid YAML: {problem_of(error)}") from None
    if values is None:
        raise MmclError(f"{path}: the file is empty; a config needs at least 'data' and 'model'")
    if not isinstance(values, dict):
        raise MmclError(f"{path}: expected keys and values at the top, got {type(values).__name__}")
    return values


_WHAT_A_CONFIG_IS = "a config is a YAML file, in which data.train.source names the data"


def problem_of(error: yaml.YAMLError) -> str:
    """What is wrong, without the excerpt and the place."""
    return str(getattr(error, "problem", None) or error)
