"""The cosine above which two things match, kept in the model folder beside what the model is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmcl.formats.card import with_section
from mmcl.formats.folder import DESCRIPTION
from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, read_json, write_json
from mmcl.runtime.version import __version__

log = logging.getLogger("mmcl")

FILE = "threshold.json"
FORMAT_VERSION = 1
_MEASURE = "measure one with: mmcl eval threshold MODEL PAIRS"


@dataclass(frozen=True)
class Calibration:
    """From scores to the probability that a pair is the same.

    Attributes:
        kind: ``logistic``, 1/(1 + exp(-(slope · score + intercept))); or ``isotonic``, linear between knots and
            constant outside.
        parameters: ``slope`` and ``intercept``, a number each; or ``scores``, ascending, and ``probabilities``.
        error: the expected calibration error, measured on pairs that were not fitted to.
    """

    kind: Literal["isotonic", "logistic"]
    parameters: Mapping[str, Sequence[float]]
    error: float

    def __call__(self, scores: Any) -> np.ndarray:
        """Probabilities of any number of scores, of their shape."""
        values = np.asarray(scores, dtype=np.float64)
        of = self.parameters
        if self.kind == "logistic":
            from scipy.special import expit  # not with every model that is opened

            return np.asarray(expit(of["slope"][0] * values + of["intercept"][0]))
        return np.interp(values, of["scores"], of["probabilities"])


@dataclass(frozen=True)
class MatchThreshold:
    """What was kept of :func:`mmcl.evaluation.threshold`, for the vectors of one model.

    Attributes:
        between: the towers compared: ``text-text``, ``image-image``, ``image-text``.
        cuts: of each asked precision (None: of the best F1), as :meth:`mmcl.evaluation.Thresholds.to_dict` has them.
        calibration: probabilities of scores; None where the data did not support a threshold at all.
        encoder: weights and prompt, as :meth:`mmcl.Encoder.fingerprint` has them.
        folder: of the model.
    """

    between: str
    cuts: Sequence[Mapping[str, Any]]
    calibration: Calibration | None
    encoder: Mapping[str, str]
    folder: Path

    def above(self, precision: float | None = None) -> float:
        """The cosine from which two things match.

        Args:
            precision: one that was asked for when it was measured; None for the best F1.

        Raises:
            MmclError: it was not, or the data did not support a number.
        """
        found = next((cut for cut in self.cuts if cut["asked"] == precision), None)
        if found is None:
            known = ", ".join("best F1" if cut["asked"] is None else f"{cut['asked']:g}" for cut in self.cuts)
            wanted = "best F1" if precision is None else f"precision {precision:g}"
            raise MmclError(f"{self.folder / FILE}: {wanted} was not measured, but {known}; choose one, or {_MEASURE}")
        if found["threshold"] is None:
            raise MmclError(f"{self.folder / FILE}: there is no threshold, since {found['reason']}")
        return float(found["threshold"])


def keep_threshold(folder: Path, between: str, measured: Mapping[str, Any]) -> Path:
    """Write what was measured into a model folder, and name it in the model card.

    What is kept there of other towers stays.

    Args:
        folder: that :meth:`mmcl.Encoder.save` or a run wrote.
        between: see :class:`MatchThreshold`.
        measured: ``cuts``, ``calibration`` and ``encoder``, and whatever else is worth keeping.

    Returns:
        The file.

    Raises:
        MmclError: ``folder`` is no model folder of ours, or what is kept there is damaged.
        OSError: the disk is full or refuses.
    """
    if not (folder / DESCRIPTION).is_file():
        raise MmclError(f"{folder}: has no {DESCRIPTION}; save the model with mmcl first, to keep a threshold with it")
    path = folder / FILE
    kept = _thresholds(path) if path.is_file() else {}
    return write_thresholds(folder, dict(sorted((kept | {between: dict(measured)}).items())))


def write_thresholds(folder: Path, kept: Mapping[str, Any]) -> Path:
    """Write all that :func:`keep_threshold` kept, {towers compared: what was measured}, in the place of what is there.

    Raises:
        OSError: the disk is full or refuses.
    """
    path, card = folder / FILE, folder / "README.md"
    write_json(path, {"format_version": FORMAT_VERSION, "mmcl_version": __version__, "thresholds": dict(kept)})
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    with atomic_file(card) as beside:
        beside.write_text(with_section(text, "Match threshold", _described(kept)), encoding="utf-8")
    return path


def still_measured(folder: Path, weights: Iterable[str]) -> dict[str, Any]:
    """What :func:`keep_threshold` kept in a folder of a model that still has the weights that it was measured with.

    The rest, if any, is named in one line of the log.

    Args:
        folder: that the model was loaded from or last saved to.
        weights: as :meth:`mmcl.Encoder.fingerprint` has them, of the model and of its parts; looked at only where
            something is kept.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        kept = _thresholds(path)
        known = set(weights)
        current = {between: values for between, values in kept.items() if values["encoder"]["weights"] in known}
        _described(current)
    except (MmclError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: damaged, and not kept with the model that is saved (%s)", path, error)
        return {}
    if changed := sorted(set(kept) - set(current)):
        log.warning(
            "the threshold of %s in %s is of other weights, and not kept with the model that is saved; %s",
            *(", ".join(changed), path, _MEASURE),
        )
    return current


def read_threshold(folder: str | Path, between: str = "text-text") -> MatchThreshold:
    """What :func:`keep_threshold` wrote.

    Args:
        folder: a model folder, or a run folder.
        between: see :class:`MatchThreshold`.

    Raises:
        MmclError: there is none, none of these towers, or the file is damaged or of a newer mmcl.
    """
    folder = Path(folder).expanduser()
    folder = folder / "model" if (folder / "model" / DESCRIPTION).is_file() else folder
    path = folder / FILE
    if not path.is_file():
        raise MmclError(f"{folder}: no match threshold is kept there; {_MEASURE}")
    kept = _thresholds(path)
    if between not in kept:
        raise MmclError(f"{path}: holds thresholds of {', '.join(kept)}, none of {between}; {_MEASURE}")
    try:
        values, calibration = kept[between], kept[between]["calibration"]
        found = None
        if calibration is not None:
            found = Calibration(**{key: calibration[key] for key in ("kind", "parameters", "error")})
            found(0.0)
        match = MatchThreshold(between, values["cuts"], found, values["encoder"], folder)
        _ = [(cut["asked"], cut["threshold"], cut["reason"]) for cut in match.cuts]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MmclError(f"{path}: damaged ({type(error).__name__}: {error}); {_MEASURE}") from None
    return match


def _thresholds(path: Path) -> dict[str, Any]:
    content = read_json(path)
    version, kept = content.get("format_version"), content.get("thresholds")
    if not isinstance(version, int) or not isinstance(kept, dict):
        raise MmclError(f"{path}: damaged; delete it, and {_MEASURE}")
    if version > FORMAT_VERSION:
        raise MmclError(f"{path}: written by mmcl {content.get('mmcl_version', '?')}, a newer one; upgrade mmcl")
    return kept


def _described(kept: Mapping[str, Any]) -> list[str]:
    lines = [f"`{FILE}` holds the cosine from which two things match, as `mmcl eval threshold` measured it.", ""]
    lines += ["| | match from | precision | recall |", "|---|---|---|---|"]
    for between, values in kept.items():
        for cut in values["cuts"]:
            asked = "best F1" if cut["asked"] is None else f"precision {cut['asked']:g}"
            if cut["threshold"] is None:
                lines.append(f"| {between}, {asked} | none | | |")
                continue
            shares = [f"{cut[name]:.3f} ({low:.3f} – {high:.3f})" for name, (low, high) in cut["intervals"].items()]
            lines.append(f"| {between}, {asked} | {cut['threshold']:.6g} | {shares[0]} | {shares[1]} |")
    return lines
