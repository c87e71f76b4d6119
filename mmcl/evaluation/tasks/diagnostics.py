"""The geometry of an embedding space: is it used, are its modalities together, has it collapsed.

All of it is of unit vectors, and all but ``uniformity`` follows from sums over the rows and the D × D matrix XᵀX, so
memory is one block of rows whatever their number.

====================  ==============================================================================================
uniformity            log of the mean of exp(−2‖x − y‖²) over pairs of different rows; lower is better, 0 is one
                      point, about −4 + 8/D a uniform sphere (Wang and Isola 2020, arXiv:2005.10242, t = 2)
effective_rank        exp of the entropy of the singular values of X as shares of their sum: from 1 to D (Roy and
                      Vetterli 2007; RankMe, arXiv:2210.02885, uses the same)
random_cosine         mean cosine of pairs of different rows; between modalities, of pairs that do not belong together
top_component         share of the variance that lies along its first principal component; 1/D if it is uniform
dead_dimensions       dimensions in which the rows hardly differ: their standard deviation is below 1% of the 1/√D
                      of a uniform sphere
alignment             mean of ‖x − y‖² over pairs that belong together; lower is better (Wang and Isola, α = 2)
positive_cosine       mean cosine of pairs that belong together
modality_gap          distance between the centroids of the two modalities (Liang et al. 2022, arXiv:2203.02053)
====================  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcl.evaluation.inputs import matrix, owners, same_width
from mmcl.evaluation.metrics.rank import spectrum_rank
from mmcl.evaluation.metrics.ranking import Vectors
from mmcl.losses.logits.similarity import unit_length
from mmcl.runtime.errors import MmclError

_ROWS = 4096  # of a block
_DEAD = 0.01

# A collapse is judged by two signs that a working model does not show, however it was trained.
# Cosine: the narrowest cones in use are those of text models trained at a temperature of 0.01, whose authors report
# scores from about 0.7 up (E5, arXiv:2212.03533); above 0.95, random pairs are less than 18 degrees apart.
# Rank: with fewer than 2% of the possible directions (10 of 512) even a linear classifier of a dozen classes
# fails, and models that transfer well use most of them (RankMe). Below 2, what is left is a line.
_CLOSE, _FLAT, _FLAT_AT_LEAST = 0.95, 0.02, 2.0
_ENOUGH = 16  # rows; a handful of inputs may well be alike


@dataclass(frozen=True)
class Space:
    """How the vectors of one modality lie; the names are explained above."""

    rows: int
    dim: int
    uniformity: float
    uniformity_rows: int
    """How many rows ``uniformity`` is over: all, or a random sample of the cap's size, with all pairs among them."""
    effective_rank: float
    random_cosine: float
    top_component: float
    dead_dimensions: int

    def collapse(self) -> str | None:
        """Why the space is to be called collapsed; None if it is not."""
        if self.rows < _ENOUGH:
            return None
        if self.random_cosine > _CLOSE:
            return f"two random vectors have a cosine of {self.random_cosine:.3f}, above {_CLOSE}"
        most = min(self.rows, self.dim)
        if self.effective_rank < (least := max(_FLAT_AT_LEAST, _FLAT * most)):
            return f"the effective rank is {self.effective_rank:.1f} of at most {most}, below {least:.1f}"
        return None


@dataclass(frozen=True)
class Between:
    """How the pairs of two modalities lie; the names are explained above."""

    pairs: int
    alignment: float
    positive_cosine: float
    random_cosine: float
    modality_gap: float


@dataclass(frozen=True)
class Diagnostics:
    """What ``diagnose`` measured."""

    spaces: dict[str, Space]
    """By modality."""
    between: Between | None
    """None of a single modality."""
    rank_me: float | None = None
    """Of images alone: :func:`mmcl.evaluation.metrics.rank.rank_me` of the embeddings before they are normalised."""
    lidar: float | None = None
    """Of images alone: :func:`mmcl.evaluation.metrics.rank.lidar` of random changes of each."""

    @property
    def collapsed(self) -> list[str]:
        """One reason for each modality that has collapsed: empty is good."""
        reasons = {name: space.collapse() for name, space in self.spaces.items()}
        return [f"the {name} embeddings have collapsed: {reason}" for name, reason in reasons.items() if reason]

    def metrics(self) -> dict[str, float]:
        """All numbers in one level, such as "image/uniformity" and "alignment"; ready for a log."""
        skipped = ("rows", "dim", "uniformity_rows", "pairs")
        flat = {} if self.between is None else asdict(self.between)
        for name, space in self.spaces.items():
            flat |= {f"{name}/{measure}": value for measure, value in asdict(space).items()}
        return {name: float(value) for name, value in flat.items() if name.split("/")[-1] not in skipped}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        spaces = {name: asdict(space) for name, space in self.spaces.items()}
        between = {} if self.between is None else {"between": asdict(self.between)}
        ranks = {name: rank for name in ("rank_me", "lidar") if (rank := getattr(self, name)) is not None}
        return {**spaces, **between, **ranks, "collapsed": self.collapsed}


def diagnose(
    image: Vectors,
    text: Vectors | None = None,
    image_of_text: Sequence[int] | np.ndarray | None = None,
    *,
    names: tuple[str, str] = ("image", "text"),
    max_rows: int = 4096,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Diagnostics:
    """Measure one set of vectors, or two whose rows belong together.

    Args:
        image: (N, D) vectors of any length: directions are judged.
        text: (T, D) vectors.
        image_of_text: (T,) the row of each text's image; by default text j belongs to image j.
        names: what the two are called in the result.
        max_rows: ``uniformity`` compares all pairs of at most so many rows, drawn at random if there are more; its cost
            is quadratic. Everything else is exact.
        seed: of that draw.
        device: where to compute; by default where ``image`` lies if it is a tensor, else the CPU.

    Raises:
        MmclError: vectors that are empty, not finite or of different widths, a single row, or an image number out of
            range.
    """
    if max_rows < 2:
        raise MmclError(f"diagnose: max_rows is {max_rows}; uniformity needs at least two rows to compare")
    where = torch.device(device or (image.device if isinstance(image, Tensor) else "cpu"))
    image = matrix(names[0], image)
    spaces, sums = {}, []
    for name, vectors in ((names[0], image), (names[1], text)):
        if vectors is not None:
            vectors = matrix(name, vectors)
            spaces[name], total = _space(name, vectors, max_rows, seed, where)
            sums.append(total)
    if text is None:
        return Diagnostics(spaces, None)
    text = matrix(names[1], text)
    same_width((f"{names[0]} vectors", image), (f"{names[1]} vectors", text))
    owner = owners(image_of_text, len(image), len(text), names)
    return Diagnostics(spaces, _between(image, text, owner, sums[0], sums[1], where))


def diagnose_pairs(
    first: Vectors,
    second: Vectors,
    positive: np.ndarray | None = None,
    *,
    name: str = "text",
    max_rows: int = 4096,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Diagnostics:
    """Measure pairs of one modality: the space of all their vectors, and how the pairs that belong together lie in it.

    Args:
        first, second: (N, D) vectors; row i of one makes a pair with row i of the other.
        positive: (N,) bool, the pairs that belong together; all if absent. The others count in the space alone.
        name: what the modality is called in the result.
        max_rows, seed, device: as in ``diagnose``.

    Raises:
        MmclError: as ``diagnose``; numbers of rows that differ; fewer than two pairs that belong together.
    """
    if len(first) != len(second):
        raise MmclError(f"{name}: {len(first)} and {len(second)} vectors make no pairs; give as many of both")
    together = np.ones(len(first), dtype=bool) if positive is None else np.asarray(positive, dtype=bool)
    chosen = np.flatnonzero(together)
    if len(chosen) < 2:
        raise MmclError(f"{name}: {len(chosen)} of {len(first):,} pairs belong together; alignment needs at least two")
    both = diagnose(_take(first, chosen), _take(second, chosen), names=("first", "second"), seed=seed, device=device)
    alone = diagnose(
        torch.cat([torch.as_tensor(first), torch.as_tensor(second)]),
        names=(name, name),
        max_rows=max_rows,
        seed=seed,
        device=device,
    )
    return Diagnostics(alone.spaces, both.between)


def _space(name: str, vectors: Vectors, max_rows: int, seed: int, device: torch.device) -> tuple[Space, Tensor]:
    """The space of (N, D) vectors, and the (D,) sum of their directions."""
    rows, dim = vectors.shape
    if rows < 2:
        raise MmclError(f"{name}: a single vector has no geometry; give at least two")
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    total = torch.zeros(dim, dtype=torch.float64, device=device)
    for part in _parts(vectors, device):
        gram += part.T @ part
        total += part.sum(0)
    mean = total / rows
    covariance = gram / rows - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp(min=0)
    spread = float(variance.sum())
    if rows > max_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
        vectors = _take(vectors, chosen)
    return Space(
        rows=rows,
        dim=dim,
        uniformity=_uniformity(vectors, device),
        uniformity_rows=len(vectors),
        effective_rank=spectrum_rank(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()),
        random_cosine=float((total @ total - gram.trace()) / (rows * (rows - 1))),  # ‖Σx‖² less rows with themselves
        # Below the rounding of the sums there is no variance to share out.
        top_component=float(torch.linalg.eigvalsh(covariance)[-1]) / spread if spread > 1e-14 else 1.0,
        dead_dimensions=int((variance.sqrt() < _DEAD / dim**0.5).sum()),
    ), total


def _uniformity(vectors: Vectors, device: torch.device, t: float = 2.0) -> float:
    """‖x − y‖² = 2 − 2 x·y of unit vectors, so the mean is over exp(2t(x·y − 1)); no distance is ever stored."""
    rows, total = len(vectors), 0.0
    for first in _parts(vectors, device, 1024):
        total -= float(first.square().sum(1).sub_(1).mul_(2 * t).exp_().sum())  # less the pairs of a row with itself
        for second in _parts(vectors, device):
            total += float((first @ second.T).sub_(1).mul_(2 * t).exp_().sum())
    return float(np.log(total / (rows * (rows - 1))))


def _between(
    image: Vectors, text: Vectors, owner: np.ndarray, image_sum: Tensor, text_sum: Tensor, device: torch.device
) -> Between:
    positive, start = 0.0, 0
    for part in _parts(text, device):
        positive += float((part * _unit(_take(image, owner[start : start + len(part)]), device)).sum())
        start += len(part)
    pairs, others = len(text), len(text) * (len(image) - 1)
    cosine = positive / pairs
    return Between(
        pairs=pairs,
        alignment=2 - 2 * cosine,
        positive_cosine=cosine,
        random_cosine=(float(image_sum @ text_sum) - positive) / others,
        modality_gap=float((image_sum / len(image) - text_sum / len(text)).norm()),
    )


def _take(vectors: Vectors, rows: np.ndarray) -> Vectors:
    return vectors[torch.from_numpy(rows).to(vectors.device)] if isinstance(vectors, Tensor) else vectors[rows]


def _parts(vectors: Vectors, device: torch.device, rows: int = _ROWS) -> Iterator[Tensor]:
    for start in range(0, len(vectors), rows):
        yield _unit(vectors[start : start + rows], device)


def _unit(vectors: Vectors, device: torch.device) -> Tensor:
    """(n, D) float64 unit vectors."""
    if not isinstance(vectors, Tensor):
        vectors = torch.from_numpy(np.array(vectors, dtype=np.float64))  # a copy: a memory map may be read-only
    return unit_length(vectors.to(device, torch.float64))
