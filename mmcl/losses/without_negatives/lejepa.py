"""The two terms of LeJEPA: the prediction of a row's centre, and a distribution that must be Gaussian."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl.losses.logits.similarity import prepare


def centre_prediction(views: Tensor, global_views: int = 2) -> Tensor:
    r"""Mean squared distance of all views of a row from the mean of its global ones (LeJEPA, Balestriero & LeCun 2025,
    arXiv:2511.08544, algorithm 2).

    .. math:: \frac{1}{VND} \sum_{v,i} ‖z_{vi} - \bar z_i‖^2, \quad \bar z_i = \frac{1}{G} \sum_{g=1}^{G} z_{gi}

    Args:
        views: (V, N, D) embeddings of V views of N rows.
        global_views: G, how many views are global, the first ones; gradient flows to their mean as well.

    Returns:
        A scalar; float64 for float64 inputs, else float32.

    Raises:
        ValueError: ``views`` is not (V, N, D) of at least one row, or G is not in 1 to V.

    >>> centre_prediction(torch.tensor([[[1.0]], [[3.0]], [[2.0]]])).item()  # 1, 1 and 0 from the mean of two
    0.6666666865348816
    """
    if views.ndim != 3 or views.numel() == 0:
        raise ValueError(f"views must be (V, N, D) of at least one row, not {tuple(views.shape)}")
    if not 1 <= global_views <= len(views):
        raise ValueError(f"global_views must be 1 to {len(views)}, the number of views, not {global_views}")
    with torch.autocast(views.device.type, enabled=False):
        views = views.to(torch.promote_types(views.dtype, torch.float32))
        return (views - views[:global_views].mean(dim=0)).square().mean()


def sigreg(views: Tensor, directions: Tensor, *, limit: float = 3.0, knots: int = 17) -> Tensor:
    r"""Sketched isotropic Gaussian regularisation (SIGReg; LeJEPA, Balestriero & LeCun 2025, arXiv:2511.08544, section
    4): the Epps–Pulley statistic of the projections on M directions, against the standard Gaussian.

    .. math:: \frac{1}{VM} \sum_{v,m} N \int_{-l}^{l} \Big|\frac{1}{N} \sum_i e^{ı t\, a_m \cdot z_{vi}} -
              e^{-t^2/2}\Big|^2 e^{-t^2/2} \, dt

    It is about 1.05 for Gaussian embeddings, however many. The integral is taken by the trapezoidal rule from 0 to l,
    doubled: both halves are the same. The batch is what is passed: on several processes pass the embeddings of the
    global batch, gathered.

    Args:
        views: (V, N, D) embeddings of V views of N rows, not normalised.
        directions: (D, M), brought to unit length. Draw them anew in each step, the same on all processes.
        limit: l > 0, the largest frequency; 3 in the authors' code, 5 in the paper's.
        knots: at least 2, frequencies at which it is computed.

    Returns:
        A scalar; float64 for float64 inputs, else float32, in which all sums are accumulated.

    Raises:
        ValueError: shapes do not fit, ``limit`` is not above 0, or there are fewer than two knots.

    >>> _ = torch.manual_seed(0)
    >>> gaussian, directions = torch.randn(1, 4096, 8), torch.randn(8, 64)
    >>> sigreg(gaussian, directions) < 1 < sigreg(2 * gaussian, directions) < sigreg(0 * gaussian, directions)
    tensor(True)
    """
    if views.ndim != 3 or views.numel() == 0 or directions.ndim != 2 or len(directions) != views.shape[2]:
        shapes = f"{tuple(views.shape)} and {tuple(directions.shape)}"
        raise ValueError(f"views and directions must be (V, N, D) of at least one row and (D, M), not {shapes}")
    if not limit > 0.0 or knots < 2:
        raise ValueError(f"limit must be above 0 and knots 2 or more, not {limit} and {knots}")
    with torch.autocast(views.device.type, enabled=False):
        (vectors,) = prepare(views.flatten(0, 1), similarity="dot")
        projections = (vectors @ F.normalize(directions.to(vectors), dim=0)).unflatten(0, views.shape[:2])  # (V, N, M)
        t = torch.linspace(0.0, limit, knots, dtype=vectors.dtype, device=vectors.device)
        gaussian = (-t.square() / 2).exp()  # its characteristic function, and the weight of a frequency
        angles = projections[..., None] * t  # (V, N, M, knots)
        distance = (angles.cos().mean(dim=1) - gaussian).square() + angles.sin().mean(dim=1).square()
        return 2 * views.shape[1] * torch.trapezoid(distance * gaussian, t, dim=-1).mean()
