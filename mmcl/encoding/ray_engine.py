"""Encoding on a Ray cluster: Ray Data gives out the ranges of a corpus, each of which becomes its shard."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.data.sources.tar.rows import open_rows
from mmcl.data.sources.tar.shards import allow_pipes
from mmcl.encoding.corpora.job import Job, encode_range
from mmcl.encoding.corpora.manifest import MANIFEST
from mmcl.encoding.corpora.opening import open_job
from mmcl.encoding.corpora.settings import Columns, Layout
from mmcl.encoding.load import load
from mmcl.runtime.errors import MmclError, first_line
from mmcl.runtime.progress import progress

if TYPE_CHECKING:
    from ray.data import Dataset

_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Recipe:
    """What a process on another machine needs to open the same job.

    All machines see the model, the rows and the folder of vectors under the same paths.

    Attributes:
        model: name or folder of the encoder.
        source: of the rows.
        columns: to encode.
        out: the folder of vectors.
        tower: of the model, where it has several of a kind.
        loading: how the model is opened, see :func:`mmcl.encoding.load.load`.
        reading: how the rows are opened, see :func:`mmcl.data.sources.tar.rows.open_rows`.
        layout: how vectors are computed and written.
        settings: the others of :func:`mmcl.encoding.corpora.opening.open_job`.
        working: the folder that relative paths start from.
        pipes: run the commands of ``pipe:`` sources.
    """

    model: str
    source: str
    columns: Columns
    out: str
    tower: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    settings: dict[str, Any] = field(default_factory=dict)
    working: str = field(default_factory=os.getcwd)
    pipes: bool = False

    def open(self) -> Job:
        """The job, with a model and rows of this process's own."""
        if self.pipes:
            allow_pipes()
        encoder = load(self.model, **self.loading)
        encoder = encoder if self.tower is None else encoder.select(self.tower)
        rows = open_rows(self.source, **self.reading)
        return open_job(encoder, rows, self.columns, self.out, layout=self.layout, **self.settings)


class RayEngine:
    """Encodes the missing ranges of a job on a Ray cluster; to be given to :class:`~mmcl.encoding.Layout`.

    Each range is a task of Ray Data, of a GPU where the cluster has any, else of as many cores as its smallest machine
    has. Ray gives the tasks of a machine that is lost to the others, and tasks to machines that join. The shards are
    those that one process would write.

    Args:
        recipe: by which the processes of other machines open the job.
        address: of the cluster, as ``ray.init`` takes it; by default the one that this machine belongs to, or if it
            belongs to none, one that is started here and ends with this process.

    Raises:
        MmclError: when it is called: Ray is not installed, no cluster answers, a machine does not see the folder of the
            vectors, or as of :func:`mmcl.encoding.corpora.job.encode_range`.
    """

    def __init__(self, recipe: Recipe, address: str | None = None) -> None:
        self.recipe, self.address = recipe, address

    def __call__(self, job: Job, show_progress: bool | None = None) -> None:
        missing, total = job.missing(), len(job.reader.rows)
        if not missing:
            return
        _connect(self.address)
        import ray

        try:
            with progress("encode", total, "rows", show_progress) as advance:
                advance(total - sum(len(job.ranges.rows(number)) for number in missing))
                for row in _tasks(missing, self.recipe).iter_rows():
                    if row["error"]:
                        raise MmclError(row["error"])
                    advance(len(job.ranges.rows(row["number"])))
        except ray.exceptions.RayError as error:
            raise MmclError(f"Ray: {first_line(error)}; given again, the command does what is missing") from error


def _connect(address: str | None) -> None:
    try:
        import ray
    except ImportError:
        raise MmclError("--engine ray needs Ray, which is not installed: pip install 'mmcl[ray]'") from None
    if ray.is_initialized():
        return
    try:
        host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
        if colon:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"--address {address}" if address else "RAY_ADDRESS"
        raise MmclError(
            f"{where}: no Ray cluster answers there ({first_line(error):.200}); `ray status` on one of its machines "
            "says its address"
        ) from None


def _tasks(numbers: list[int], recipe: Recipe) -> Dataset:
    """A data set of the numbers, each of which appears once its range is encoded."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    on_gpus = any(node.get("GPU") for node in nodes)
    needs = {"num_gpus": 1} if on_gpus else {"num_cpus": min(node["CPU"] for node in nodes if node.get("CPU"))}
    items = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    return items.map(_encode, fn_kwargs={"recipe": recipe}, **needs)


def _encode(row: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Encode a range on the machine that has been given it; what the user can mend comes back as its message."""
    try:
        encode_range(_opened(recipe), row["number"])
    except (MmclError, OSError) as error:
        return row | {"error": f"{os.uname().nodename}: {error}"}
    return row | {"error": ""}


_open: list[tuple[Recipe, Job]] = []


def _opened(recipe: Recipe) -> Job:
    """The job of a process of Ray's, which takes range after range and opens it once."""
    if _open and _open[0][0] == recipe:
        return _open[0][1]
    with suppress(OSError):
        os.chdir(recipe.working)
    if not (Path(recipe.out) / MANIFEST).exists():
        raise MmclError(f"{recipe.out} is not there; name a folder with --out that all machines of the cluster share")
    _open[:] = [(recipe, recipe.open())]
    return _open[0][1]
