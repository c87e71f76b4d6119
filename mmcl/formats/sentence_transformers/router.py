"""A router's file: which modules texts of each kind pass through."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmcl.formats.sentence_transformers.files import read_config
from mmcl.runtime.errors import MmclError

ROUTER = "router_config.json"


class Router(NamedTuple):
    """Attributes:
    routes: name of each to its modules, in order: the folder of each within the router's, and its class.
    default: name of the route of texts that name none; None where one has to be named.
    """

    routes: dict[str, list[tuple[str, str]]]
    default: str | None


def read_router(folder: Path) -> Router:
    """The routes of texts of the router in ``folder``.

    Raises:
        MmclError: its file is missing or damaged, or it has a route for other things than texts.
    """
    config = read_config(folder, ROUTER if (folder / ROUTER).is_file() else "config.json")
    types, settings = config["types"], config.get("parameters") or {}
    names = {name: name for name in config["structure"]}
    for task, route in _tasks(settings.get("route_mappings") or {}, folder).items():
        if route not in config["structure"]:
            raise MmclError(f"{folder}: routes '{task}' to '{route}', which it does not have; take a fresh copy")
        names = {name: each for name, each in names.items() if each != route} | {task: route}
    routes = {name: [(path, types[path]) for path in config["structure"][route]] for name, route in names.items()}
    default = settings.get("default_route")
    if default is None and settings.get("allow_empty_key", True):
        default = next(iter(config["structure"]))
    return Router(routes, next((name for name, route in names.items() if route == default), None))


def _tasks(mappings: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Task to route. A mapping's key is written as Python writes a pair of task and modality."""
    found = {}
    for key, route in mappings.items():
        task, modality = ast.literal_eval(key)
        if modality not in (None, "text") or not isinstance(task, str):
            raise MmclError(f"{folder}: routes {key} to '{route}'; only routes of texts by task are supported")
        found[task] = route
    return found


def router_config(routes: Mapping[str, list[tuple[str, str]]], default: str | None) -> dict[str, Any]:
    """What :func:`read_router` reads again."""
    return {
        "types": {path: kind for modules in routes.values() for path, kind in modules},
        "structure": {name: [path for path, _ in modules] for name, modules in routes.items()},
        "parameters": {"default_route": default, "allow_empty_key": default is not None},
    }
