"""Implementations by name: the package's own, and those of other packages, which register them as entry points."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from mmcl.runtime.errors import MmclError, first_line, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger("mmcl")
T_co = TypeVar("T_co", covariant=True)


class Registry(Mapping[str, T_co]):
    """Names to objects, each of which is imported when it is first asked for.

    Another package adds one by an entry point in its ``pyproject.toml``::

        [project.entry-points."mmcl.evaluators"]
        my_task = "my_package.my_module:MyEvaluator"

    Args:
        group: of the entry points.
        kind: what messages call an entry, such as "evaluator".
        builtin: {name: "module:attribute"} of the package's own. An entry point of such a name is ignored, with a
            warning.
    """

    def __init__(self, group: str, kind: str, builtin: Mapping[str, str]) -> None:
        self.group, self.kind = group, kind
        self._builtin = dict(builtin)
        self._loaded: dict[str, Any] = {}

    @cached_property
    def plugins(self) -> dict[str, EntryPoint]:
        """The entry points of other packages, by name."""
        from importlib.metadata import entry_points  # slow to import, and not needed for what is built in

        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._builtin or point.name in found:
                log.warning("%s '%s': %s is ignored, the name is taken", self.kind, point.name, point.value)
            else:
                found[point.name] = point
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._builtin
        yield from sorted(self.plugins)

    def __len__(self) -> int:
        return len(self._builtin) + len(self.plugins)

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self.plugins

    def __getitem__(self, name: str) -> T_co:
        """The object called ``name``.

        Raises:
            MmclError: there is none, or the package that registers it cannot be imported.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Any:
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name not in self.plugins:
            raise MmclError(f"no {self.kind} '{name}'; {nearest(name, self)}")
        point = self.plugins[name]
        try:
            return point.load()
        except Exception as error:  # whatever a module of somebody else's meets
            raise MmclError(
                f"{self.kind} '{name}': {point.value} of {self.origin(name)} cannot be imported ({first_line(error)}); "
                "mend or uninstall that package"
            ) from error

    def origin(self, name: str) -> str:
        """The package that registers ``name``, with its version."""
        if name in self._builtin or (dist := self.plugins[name].dist) is None:
            return "mmcl"
        return f"{dist.name} {dist.version}"
