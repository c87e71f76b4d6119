"""Products of queries and documents in bfloat16 or float32, and how far at most they are from the true ones.

With x̂ the vector x as it is multiplied, rounded to bfloat16, and r = x − x̂ what rounding took off it,

    q·d − q̂·d̂ = r_q·d + q̂·r_d,   so that   |q·d − q̂·d̂| ≤ ‖r_q‖ ‖d‖ + ‖q̂‖ ‖r_d‖   (Cauchy–Schwarz).

The norms of r are measured. A sum of n products in float32, in whatever order, is off by at most γₙ ‖q̂‖ ‖d̂‖, with
γₙ ≈ n 2⁻²⁴ (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1).

Distances are products, too: −‖q − d‖²/2 = q·d − ‖d‖²/2 − ‖q‖²/2, where one more column multiplies ‖d‖²/2 by −1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from mmcl.losses.logits.similarity import Similarity, unit_length
from mmcl.retrieval.largest import where
from mmcl.runtime.device import widest
from mmcl.runtime.products import float32_setting, multiply

_GROUP = 16  # products of which the largest is compared with the threshold
_PAIRS = 256  # scored at a time: they stay in a core's cache
_TINY = 1e-15  # norms below may have lost squares to underflow
_PARTS = {torch.float32: 1, torch.bfloat16: 3}  # numbers of a type that have the digits of a float32
_ROUNDED_INPUTS = {"ieee": 0.0, "tf32": 2.0**-9, "bf16": 2.0**-6}
"""By torch's setting: how far products of float32 numbers may be off, of the norms' product."""


@dataclass
class Block:
    """Vectors to multiply.

    Attributes:
        vectors: (n, D) float32.
        columns: of distances, from a type to the (n, c) columns that the factors have beside the vectors.
        norms: (n,) at least the Euclidean norms of the vectors.
    """

    vectors: Tensor
    columns: Callable[[torch.dtype], Tensor] | None = None
    norms: Tensor = field(init=False)
    _factors: dict[torch.dtype, tuple[Tensor, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.norms = _norms(self.vectors)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(n, K) what is multiplied, and (n,) at least the norms of what rounding took off the vectors."""
        if dtype not in self._factors:
            rounded = self.vectors.to(dtype)
            exact = rounded is self.vectors
            lost = torch.zeros_like(self.norms) if exact else _norms(rounded.float().sub_(self.vectors))
            if self.columns is not None:
                rounded = torch.cat([rounded, self.columns(dtype)], 1)
            self._factors[dtype] = rounded, lost
        return self._factors[dtype]


class Space:
    """Vectors of one similarity, and their products.

    Args:
        similarity: what the products rank by.
        centre: (D,) what is subtracted from vectors whose distances are wanted: a common offset would use up the
            digits that tell them apart. Without it they are taken as they are.
    """

    def __init__(self, similarity: Similarity, centre: Tensor | None = None) -> None:
        self.similarity = similarity
        self._centre = centre
        self._distances = similarity == "euclidean"
        self._workspace: dict[torch.dtype, Tensor] = {}  # memory that is taken anew costs a fifth of the product

    def queries(self, vectors: Tensor) -> Block:
        """(n, D) float32 vectors as queries."""
        vectors = self._placed(vectors)
        if not self._distances:
            return Block(vectors)
        return Block(vectors, lambda dtype: vectors.new_full((len(vectors), _PARTS[dtype]), -1).to(dtype))

    def documents(self, vectors: Tensor) -> Block:
        """(n, D) float32 vectors as documents."""
        vectors = self._placed(vectors)
        if not self._distances:
            return Block(vectors)
        halves = vectors.square().sum(1) / 2
        return Block(vectors, lambda dtype: _parts(halves, dtype))

    def products(self, queries: Block, documents: Block, dtype: torch.dtype) -> Tensor:
        """(n, m) products, computed in ``dtype``, which ascend with the similarity of each query's documents.

        They hold until the next call, which may overwrite them.
        """
        left, right = queries.factors(dtype)[0], documents.factors(dtype)[0].T
        if left.is_cuda and dtype == torch.bfloat16:  # else partial sums, too, may be rounded to bfloat16
            return torch.mm(left, right, out_dtype=torch.float32)
        size = left.shape[0] * right.shape[1]
        if dtype not in self._workspace or self._workspace[dtype].numel() < size:
            self._workspace[dtype] = left.new_empty(size)
        out = self._workspace[dtype][:size].view(left.shape[0], right.shape[1])
        multiply(left, right, out)
        return out

    def slack(self, queries: Block, documents: Block, dtype: torch.dtype) -> Tensor:
        """(n,) by how much :meth:`products` and :meth:`scores` of a query and any of the documents can differ, before
        the products are rounded to the type in which they are returned."""
        (left, lost), (_, lost_of_documents) = queries.factors(dtype), documents.factors(dtype)
        norms, largest = queries.norms, documents.norms.max()
        inputs = lost * largest + (norms + lost) * lost_of_documents.max()
        size = (norms + largest).square() if self._distances else norms * largest
        if dtype == torch.float32:
            inputs = inputs + _ROUNDED_INPUTS[float32_setting(left.device)] * size
        # Of the products and of the scores; and numbers below the smallest normal one may be taken as 0.
        sums = (left.shape[1] + 8) * (2.0**-23 * size + torch.finfo(torch.float32).tiny)
        return (inputs + sums) * (1 + 2.0**-5)  # norms are rounded, and those of the factors a little larger

    def scores(self, queries: Block, documents: Block, rows: Tensor, columns: Tensor) -> Tensor:
        """(m,) of m pairs q·d, or −‖q − d‖²/2: each by the same float32 sum, so that equal vectors have equal ones.

        Args:
            queries, documents: n and N vectors.
            rows: (m,) of queries, ascending.
            columns: (m,) of documents.
        """
        if not self._distances and rows.device.type == "cpu":
            return _sampled(queries.vectors, documents.vectors, rows, columns)
        parts = []
        for row, column in zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True):
            left, right = queries.vectors.index_select(0, row), documents.vectors.index_select(0, column)
            parts.append(right.sub_(left).square_().sum(1).mul_(-0.5) if self._distances else right.mul_(left).sum(1))
        return torch.cat(parts)

    def dense_scores(self, queries: Block, documents: Block) -> Tensor:
        """(n, m) the same scores of all pairs, by float64 products."""
        wide = widest(queries.vectors.device)
        left, right = queries.vectors.to(wide), documents.vectors.to(wide)
        products = left @ right.T
        if self._distances:
            products -= right.square().sum(1) / 2 + left.square().sum(1, keepdim=True) / 2
        return products.float()

    def of_scores(self, queries: Block, scores: Tensor) -> Tensor:
        """(n,) scores of queries, in the units of products."""
        return scores + queries.vectors.square().sum(1) / 2 if self._distances else scores

    def similarities(self, scores: Tensor) -> Tensor:
        """Scores as what they are to the caller: cosines, products, or negative distances."""
        return -(-2 * scores.clamp(max=0)).sqrt() if self._distances else scores

    def _placed(self, vectors: Tensor) -> Tensor:
        if self.similarity == "cosine":
            norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
            # Squares neither overflow nor underflow between these bounds, and one division is enough.
            usual = bool(((norms > _TINY) & (norms < 1 / _TINY)).all())
            return vectors / norms if usual else unit_length(vectors)
        return vectors if self._centre is None else vectors - self._centre


def group_maxima(products: Tensor) -> Tensor:
    """(n, g) the largest of each group of the (n, m) products; the products themselves where groups cannot be equal."""
    rows, columns = products.shape
    return products if columns % _GROUP else products.view(rows, _GROUP, columns // _GROUP).amax(1)


def reaching(products: Tensor, largest: Tensor, least: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """Rows, ascending, and columns of the (n, m) products that are at least each row's (n,) ``least``; None where more
    than ``most`` would have to be looked at.

    Rounding is monotone: a sum that reaches ``least`` reaches it as well after both are rounded to the products' type.
    """
    least = least.to(products.dtype)[:, None]
    row, group = where(largest >= least)
    if len(row) > most:
        return None
    if largest is products:
        return row, group
    rows, groups = largest.shape
    which, member = where(products.view(rows, _GROUP, groups)[row, :, group] >= least[row])
    return (row[which], member * groups + group[which]) if len(which) <= most else None


def _sampled(queries: Tensor, documents: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(m,) products of single pairs, without copies of their vectors."""
    ends = functional.pad(rows.bincount(minlength=len(queries)).cumsum(0), (1, 0))
    shape = (len(queries), len(documents))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are new
        wanted = torch.sparse_csr_tensor(ends, columns, documents.new_zeros(len(rows)), shape, check_invariants=False)
    return torch.sparse.sampled_addmm(wanted, queries, documents.T, beta=0.0).values()


def _norms(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1)
    if (tiny := norms < _TINY).any():
        norms = torch.where(tiny, vectors.abs().amax(1) * vectors.shape[1] ** 0.5, norms)
    return norms


def _parts(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, c) numbers of the type that add up to the (n,) float32 values."""
    parts = []
    for _ in range(_PARTS[dtype]):
        parts.append(values.to(dtype))
        values = values - parts[-1].float()
    return torch.stack(parts, 1)
