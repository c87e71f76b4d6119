"""The tower of a group of columns."""

from __future__ import annotations

import torch

from mmcl.models.table.tower import CategoryBag, NumberPair, TableTower


def test_a_list_is_the_sum_of_its_values_over_the_root_of_their_number():
    torch.manual_seed(0)
    bag = CategoryBag(entries=5, width=3)
    found = bag(torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]]))
    torch.testing.assert_close(found[0], bag.weight[1:4].sum(0) / 3**0.5)
    torch.testing.assert_close(found[1], bag.weight[4])
    assert not found[2].any()


def test_no_gradient_flows_to_the_vector_of_none():
    bag = CategoryBag(entries=5, width=3)
    bag(torch.tensor([[1, 0], [0, 0]])).sum().backward()
    assert not bag.weight.grad[[0, 2, 3, 4]].any()
    assert bag.weight.grad[1].all()


def test_fields_stand_side_by_side_whatever_they_are_called():
    tower = TableTower({"items/seen.so far": CategoryBag(4, 3), "type": NumberPair()})
    assert tower.width == 5
    numbers = torch.tensor([[0.5, 1.0]])
    found = tower(**{"type/numbers": numbers, "items/seen.so far/values": torch.tensor([[2]])})
    torch.testing.assert_close(found, torch.cat([tower.net[0].weight[2:3], numbers], dim=1))
