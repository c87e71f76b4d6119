"""Data sets of `datasets`: on the hub, or in a folder that it wrote."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmcl.data.rows import NoSourceError, Rows
from mmcl.data.sources.files import fingerprint
from mmcl.data.sources.tables import Loaded, rows_of
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import cache_dir

if TYPE_CHECKING:
    import datasets


def open_saved(folder: Path, split: str | None, *, name: str, root: Path | None = None) -> Rows:
    """A folder written by ``save_to_disk``."""
    import datasets

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with _reading(name):
        saved = datasets.load_from_disk(str(folder))
    dataset = _choose(saved, split, name)
    return rows_of(Loaded(dataset), name=name, fingerprint=fingerprint(files, split), folder=root or folder.resolve())


def open_hub(hub_name: str, config: str | None, split: str | None, *, name: str, folder: Path | None = None) -> Rows:
    """A data set on the hub, by way of the cache; paths in it start from ``folder``."""
    import datasets

    with _reading(name):
        try:
            loaded = datasets.load_dataset(hub_name, config, cache_dir=str(cache_dir("datasets")))
        except ConnectionError as error:
            raise NoSourceError(f"{name}: no such file or folder here, and the hub cannot be reached") from error
        except FileNotFoundError as error:
            raise NoSourceError(f"{name}: no such file or folder here, and no such data set on the hub") from error
    dataset = _choose(loaded, split, name)
    label = f"{name} ({split})" if split else name
    return rows_of(Loaded(dataset), name=label, fingerprint=dataset._fingerprint, folder=folder)


def no_split(name: str, split: str, parts: Sequence[str]) -> NoReturn:
    """Raise ``MmclError``: there is no such split, but these."""
    if not parts:
        raise MmclError(f"{name}: it has no splits; leave out split '{split}'")
    raise MmclError(f"{name}: no split '{split}'; it has {', '.join(sorted(set(parts)))}")


def _choose(loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, name: str) -> datasets.Dataset:
    import datasets

    if isinstance(loaded, datasets.Dataset):
        if split is not None and str(loaded.split) != split:
            no_split(name, split, [])
        return loaded
    parts = sorted(str(part) for part in loaded)
    if split is None and len(parts) == 1:
        split = parts[0]
    if split is None:
        raise MmclError(f"{name}: it has the splits {', '.join(parts)}; name one as split")
    if split not in parts:
        no_split(name, split, parts)
    return loaded[split]


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Keep `datasets` quiet, and turn its failure into one line that names the cause; a full disk stays ``OSError``."""
    import datasets

    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except MmclError:
        raise
    except Exception as error:
        causes = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)  # type: ignore[arg-type]
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
                raise cause from None
            if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                reason = f"{cause.filename or 'the cache'}: {cause.strerror}"
                raise MmclError(
                    f"{reason}; if that is the cache, set MMCL_CACHE to a folder that can be written"
                ) from error
        reason = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
        raise MmclError(f"{name}: cannot be read: {reason}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
