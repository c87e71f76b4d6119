"""Groups of rows with batch statistics of their own, against explicit passes; on two processes as on one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmcl.methods.parts.statistics_groups import embed_in_groups, embed_shuffled, has_batch_norm

from ...training.processes import launch


class Net(nn.Module):
    """Normalises its inputs over the rows of the pass."""

    def __init__(self, norm=True):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False) if norm else nn.Identity()
        self.sizes = []

    def forward(self, pixels):
        self.sizes.append(len(pixels))
        return self.norm(pixels)


def normalised(rows):
    return (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()


def test_each_group_of_consecutive_rows_has_its_own_statistics():
    torch.manual_seed(0)
    pixels = torch.randn(8, 3)
    expected = torch.cat([normalised(pixels[:4]), normalised(pixels[4:])])
    torch.testing.assert_close(embed_in_groups(Net(), pixels, 4), expected)


def test_shuffled_groups_cut_across_the_consecutive_ones_and_keep_the_order_of_rows():
    torch.manual_seed(0)
    pixels = torch.randn(8, 3, requires_grad=True)
    keys = embed_shuffled(Net(), pixels, 4)
    expected = torch.empty_like(pixels)
    for group in (slice(0, None, 2), slice(1, None, 2)):
        expected[group] = normalised(pixels[group])
    torch.testing.assert_close(keys, expected)
    assert not keys.requires_grad


@pytest.mark.parametrize(("count", "rows", "sizes"), [(10, 4, [5, 5]), (7, 2, [3, 2, 2]), (3, 8, [3]), (9, 3, [3] * 3)])
def test_rows_that_do_not_divide_make_groups_of_nearly_equal_size(count, rows, sizes):
    for embed in (embed_in_groups, embed_shuffled):
        net = Net()
        embed(net, torch.randn(count, 3), rows)
        assert net.sizes == sizes


def test_without_batch_statistics_all_rows_pass_together():
    pixels = torch.randn(8, 3)
    for net in (Net(norm=False), Net().eval()):
        assert torch.equal(embed_in_groups(net, pixels, 2), embed_shuffled(net, pixels, 2))
        assert net.sizes == [8, 8]
    assert has_batch_norm(Net())
    assert not has_batch_norm(Net(norm=False))


TWO_PROCESSES = """
import torch
import torch.distributed as dist
from torch import nn
from mmcl.methods.parts.statistics_groups import embed_shuffled
from mmcl.runtime.distributed import rank, world_size

class Net(nn.BatchNorm1d):
    def forward(self, pixels):
        return super().forward(pixels)

torch.manual_seed(0)
pixels = torch.randn(16, 3)
alone = embed_shuffled(Net(3), pixels, 4)
dist.init_process_group("gloo")
own = pixels.chunk(2)[rank()]
torch.testing.assert_close(embed_shuffled(Net(3), own, 4), alone.chunk(2)[rank()])
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_deal_out_the_rows_of_both():
    launch(TWO_PROCESSES)
