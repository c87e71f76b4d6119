"""The accuracy of a batch on small examples; in tiles and across processes it is tested with the losses."""

from __future__ import annotations

import torch

from mmcl.losses import batch_accuracy


def test_a_tie_is_no_win_and_duplicates_do_not_compete():
    q = torch.eye(4)
    k = torch.eye(4)
    k[1] = k[0]  # rows 0 and 1 tie for query 0, and query 1 finds nothing
    assert batch_accuracy(q, k).item() == 0.5
    assert batch_accuracy(q, k, ids=torch.tensor([7, 7, 1, 2])).item() == 0.75
