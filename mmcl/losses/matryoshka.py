"""One loss at several dimensions, so that vectors may be cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor


def matryoshka(
    loss: Callable[[dict[str, Tensor]], Tensor],
    views: Mapping[str, Tensor],
    names: Collection[str],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    r"""A loss of embeddings plus that of their first dimensions (Kusupati et al. 2022, arXiv:2205.13147, eq. 1).

    With z_{1:m} the first m dimensions,

    .. math:: L(z) + \sum_m c_m L(z_{1:m})

    It is the sum, as in the paper, and not the mean: the loss of the full embeddings has the weight that it has alone,
    beside other terms of a method and under the same learning rate.

    Args:
        loss: from views to a scalar; it normalises by itself, since a part of a unit vector is none.
        views: the argument of ``loss``: (N, D) embeddings, and other tensors by row.
        names: which of the views are embeddings, and are truncated; the others are passed on as they are.
        dims: each m, in [1, D].
        weights: c_m of each; all 1 if absent.

    Raises:
        ValueError: a dimension is more than there are, or weights and dimensions are not as many.

    >>> import torch
    >>> views = {"query": torch.eye(4), "key": torch.eye(4)}
    >>> matryoshka(lambda v: (v["query"] * v["key"]).sum(), views, ["query", "key"], [2], [0.5]).item()
    5.0
    """
    weights = [1.0] * len(dims) if weights is None else weights
    if len(weights) != len(dims):
        raise ValueError(f"{len(weights)} weights for {len(dims)} dimensions")
    total = loss(dict(views))
    for dim, weight in zip(dims, weights, strict=True):
        for name in names:
            if not 1 <= dim <= views[name].shape[1]:
                raise ValueError(f"{name} has {views[name].shape[1]} dimensions, of which {dim} cannot be the first")
        total = total + weight * loss({**views, **{name: views[name][:, :dim] for name in names}})
    return total
