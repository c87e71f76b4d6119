"""Which classes there are, and which of them a label means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.evaluation.tasks.classification.templates import read_lines
from mmcl.runtime.errors import MmclError, nearest
from mmcl.runtime.files import existing_file
from mmcl.runtime.printable import shortened

IMAGENET = "imagenet"


def class_names(given: str | Path | Sequence[str]) -> list[str]:
    """The names of the classes, in the order of their numbers.

    Args:
        given: ``imagenet`` for the 1,000 names that open_clip and OpenAI's CLIP use, in the order of ImageNet's class
            numbers; a UTF-8 text file with a name a line; or the names themselves.

    Raises:
        MmclError: there is no such file, a name is blank, or there are fewer than two.
    """
    if isinstance(given, str) and given == IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES  # here, because importing open_clip takes seconds

        return list(IMAGENET_CLASSNAMES)
    if isinstance(given, str | Path):
        path = existing_file(given)
        if path is None:
            raise MmclError(
                f"classes '{shortened(str(given))}': no such file; write one name a line, or say '{IMAGENET}'"
            )
        names, where = read_lines(path), str(given)
    else:
        names, where = list(given), "classes"
    for number, name in enumerate(names):
        if not name.strip():  # leaving it out would shift the numbers of all that follow
            raise MmclError(f"{where}: the name of class {number} is blank; names count from 0, one a line")
    if len(names) < 2:
        raise MmclError(f"{where}: {len(names)} class names; at least two are needed")
    return names


def class_numbers(labels: Sequence[str | None], names: Sequence[str], *, where: str) -> list[int | None]:
    """The number of the class that each label means: its name, or its number in ``names`` counted from 0.

    Args:
        labels: names or numbers, as text; None and blank ones mean none.
        names: the C names.
        where: what the labels are called in messages, such as "pets.csv: column 'label'".

    Raises:
        MmclError: a label is not a class, or a name that stands for several.
    """
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    known: dict[str | None, int | None] = {None: None}
    for row, label in enumerate(labels):
        if label is not None and label not in known:
            known[label] = _number(label, places, len(names), f"{where}, row {row}") if label.strip() else None
    return [known[label] for label in labels]


def _number(label: str, places: dict[str, list[int]], count: int, where: str) -> int:
    name = label.strip()
    found = places.get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(map(str, found))
        raise MmclError(f"{where}: '{name}' is the name of the classes {both}; label the rows with class numbers")
    try:
        number = int(name)
    except ValueError:
        hint = nearest(name, places)
        hint = f"; {hint}" if hint.startswith("did") else ""  # else it lists them all
        raise MmclError(f"{where}: '{name}' is none of the {count} classes{hint}") from None
    if not 0 <= number < count:
        raise MmclError(f"{where}: class {number} is out of range; the {count} classes run from 0 to {count - 1}")
    return number
