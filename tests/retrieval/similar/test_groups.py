"""Union-find over arrays, against one pair at a time."""

from __future__ import annotations

import numpy as np

from mmcl.retrieval.similar.groups import Groups


def test_groups_are_those_of_joining_one_pair_at_a_time():
    rng = np.random.default_rng(0)
    for count in (1, 2, 17, 60):
        groups, names = Groups(count), list(range(count))
        for _ in range(5):
            first, second = rng.integers(0, count, (2, count // 5))
            groups.join(first, second)
            for one, other in zip(first.tolist(), second.tolist(), strict=True):
                low, high = sorted((names[one], names[other]))
                names = [low if name == high else name for name in names]
            assert groups.all().tolist() == names
