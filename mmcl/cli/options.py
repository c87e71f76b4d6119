"""Options that several commands share."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mmcl.runtime.errors import MmclError

if TYPE_CHECKING:
    from mmcl.encoding.encoder import Encoder

log = logging.getLogger("mmcl")
C = TypeVar("C", bound=Callable[..., None])

# The model, and how it runs.
Model = Annotated[str, typer.Argument(help="A model or run folder, or a name.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Dtype = Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16, int8 (texts on a CPU), auto.")]
Backend = Annotated[str, typer.Option(help="What runs texts: torch, onnx, openvino, onnx-int8, openvino-int8.")]
ExactDecoding = Annotated[
    bool | None,
    typer.Option(
        "--exact-decoding/--fast-decoding",
        help="Decode large JPEGs at full size; fast: at a fraction, vectors differ by up to 8e-3.",
        show_default="as the model was trained",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact-decoding/--fast-decoding",
        help="Decode large JPEGs at full size, as other libraries do; fast: as mmcl encode does by default.",
    ),
]
Tower = Annotated[
    str | None, typer.Option(help="The tower to judge, if the model has several of a kind.", show_default=False)
]

Against = Annotated[str | None, typer.Option(help="Another model: is it better, by a paired test?", show_default=False)]

# The rows.
Source = Annotated[str, typer.Argument(help="Rows: a file, folder or name.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="The part of the source to read.")]
ImageColumn = Annotated[str, typer.Option(help="The column of images.")]
Separator = Annotated[
    str | None,
    typer.Option(
        help="The character between the fields of a CSV file.", show_default="what its head shows: , tab ; or |"
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option("--image-root", help="The folder that paths of images start from.", show_default="that of the table"),
]


def _allow_pipe(allowed: bool) -> bool:
    if allowed:
        from mmcl.data.sources.tar.shards import allow_pipes

        allow_pipes()
    return allowed


AllowPipe = Annotated[
    bool, typer.Option("--allow-pipe", callback=_allow_pipe, help="Run the commands of pipe: sources, in a shell.")
]

# Retrieval and classification.
Query = Annotated[
    str | None, typer.Option(help="The column of texts to search with, for --document.", show_default=False)
]
Document = Annotated[
    str | None, typer.Option(help="The column of texts to find, one or a list a row.", show_default=False)
]
SelfMatches = Annotated[
    str | None,
    typer.Option(
        help="Queries that stand in the corpus themselves, by their id in a BEIR folder, by their words in a table: "
        "keep ranks such a document like any other, drop leaves it out for its own query, as BEIR and MTEB do.",
        show_default="drop for a BEIR folder, else keep",
    ),
]
Ties = Annotated[
    str | None,
    typer.Option(
        help="Of documents with equal scores: strict ranks the worst first, trec_eval that whose id comes last.",
        show_default="strict; of runs trec_eval",
    ),
]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        help="A prompt with {} for the class name, a file with one a line, or a set: openai (80), simple (7), photo, "
        "images, plain. Repeat it to average over several.",
        show_default="{}",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="imagenet (its 1,000 names) or a file with one name a line; labels are then names, or numbers counted "
        "from 0.",
        show_default="the distinct labels",
    ),
]
CutOffs = Annotated[str | None, typer.Option("-k", help="Cut-offs.", show_default="1,5,10; BEIR and runs: 1,10,100")]


def cutoffs(k: str | None) -> list[int] | None:
    """The numbers of ``-k``; None where it is not given."""
    if k is None:
        return None
    if not all(number.strip().isdigit() for number in k.split(",")):
        raise MmclError(f"-k {k}: expected cut-offs like 1,5,10")
    return [int(number) for number in k.split(",")]


def several(devices: str | None) -> int | list[str] | None:
    """The devices of ``--devices``: a number of processes on the CPU, or names between commas."""
    if devices is None or devices.strip().isdigit():
        return None if devices is None else int(devices)
    return [name.strip() for name in devices.split(",")]


def load(
    model: str,
    device: str,
    dtype: str = "auto",
    backend: str = "torch",
    exact_decoding: bool | None = None,
    tower: str | None = None,
) -> Encoder:
    """The model as the options ask for it, of its towers of one kind perhaps one alone."""
    import mmcl

    encoder = mmcl.load(model, device=device, dtype=dtype, backend=backend, exact_decoding=exact_decoding)
    # The same model gives other numbers in another precision, in their third or fourth digit.
    how = encoder.compute if backend == "torch" else f"{backend} for texts"
    log.info("%s: computed in %s on %s", model, how, encoder.device.type)
    return encoder if tower is None else encoder.only(tower)


_COLUMNS = ("image", "text", "label", "query", "document", "column", "score", "id", "anchor", "positive")


def names_columns(command: C) -> C:
    """A command whose errors about a missing column say which of its options names that column."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        from mmcl.data.rows import columns_named_by

        # An option that is not given stands for the column of its own name.
        named = {f"--{name}": options[name] or name for name in _COLUMNS if name in options}
        if "pairs" in options:
            named["--pairs"] = (options["pairs"] or "sentence1,sentence2").split(",")
        with columns_named_by(named):
            command(**options)

    return run  # type: ignore[return-value]
