"""mmcl models and mmcl export: what a config can name, and models for other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmcl.cli.output import JsonPath, print_table, say, write_json
from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.runtime.registry import Registry


def models(json: JsonPath = None) -> None:
    """List what a config can name: methods, towers, evaluators, sources of rows and samples, of plug-ins as well."""
    from mmcl.config.evaluation import EVALUATORS
    from mmcl.config.methods import METHODS
    from mmcl.data.samples import SAMPLES
    from mmcl.data.sources.open import PLACES, SOURCES
    from mmcl.formats.towers.image import IMAGE_TOWERS
    from mmcl.formats.towers.registered import TEXT_TOWERS
    from mmcl.formats.towers.text import NAMED

    named = {
        "text tower": NAMED,
        "source": PLACES,
        "sample": {f"sample:{name}": sample.summary for name, sample in SAMPLES.items()},
    }
    registries: tuple[Registry[Any], ...] = (METHODS, EVALUATORS, IMAGE_TOWERS, TEXT_TOWERS, SOURCES)
    found = [entry for registry in registries for entry in _registered(registry)]
    found += [_entry(kind, name, what) for kind, names in named.items() for name, what in names.items()]
    write_json(json, found)
    print_table(["kind", "name", "what it is", "from"], [list(entry.values()) for entry in found])


def _registered(registry: Registry[Any]) -> Iterator[dict[str, str]]:
    for name in registry:
        try:
            what = (inspect.getdoc(registry[name]) or "").partition("\n")[0]
        except MmclError as error:  # of another package
            what = f"cannot be used: {error}"
        yield _entry(registry.kind, name, what, registry.origin(name))


def _entry(kind: str, name: str, what: str, origin: str = "mmcl") -> dict[str, str]:
    return {"kind": kind, "name": name, "what": what, "from": origin}


def export(
    model: Annotated[str, typer.Argument(help="A model or run folder, or a name.", show_default=False)],
    to: Annotated[
        Literal["open-clip", "transformers", "sentence-transformers", "model2vec", "timm", "torchvision", "onnx"],
        typer.Option(help="The library to write for.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
) -> None:
    """Write a model as a folder that another library opens, with equal outputs there."""
    from mmcl.formats.export import export as run
    from mmcl.formats.open import open_model

    folder = run(open_model(model), to, out)
    opened = {
        "open-clip": f'open_clip.create_model_and_transforms("local-dir:{folder}")',
        "transformers": f'AutoModel.from_pretrained("{folder}")',
        "sentence-transformers": f'SentenceTransformer("{folder}")',
        "model2vec": f'StaticModel.from_pretrained("{folder}")',
        "timm": f"the lines in {folder / 'README.md'}",
        "torchvision": f"the lines in {folder / 'README.md'}",
        "onnx": f'mmcl.load("{folder}", backend="onnx")',
    }
    say(f"{folder}: opens by {opened[to]}")
