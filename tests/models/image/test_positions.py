from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mmcl.models.image.positions import fit_positions, interpolate_positions


@pytest.mark.parametrize(("old", "new"), [(7, 10), (7, 4), (4, 24)])
def test_positions_are_interpolated_as_open_clip_does(old, new):
    from open_clip.model import resize_pos_embed

    table = torch.randn(old * old + 1, 12, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": table}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(new, new))))
    expected = state["visual.positional_embedding"]
    assert torch.equal(interpolate_positions(table, new, prefix=1), expected)
    # In a state they are found by their shapes, whether they are (L, D), (1, L, D), with a class token or without.
    like = {"a": torch.empty(new * new + 1, 12), "b": torch.empty(1, new * new, 12), "c": torch.empty(5)}
    found = fit_positions({"a": table, "b": table[None, 1:], "c": torch.ones(5)}, like)
    assert torch.equal(found["a"], expected)
    assert torch.equal(found["b"][0], expected[1:])
    assert torch.equal(found["c"], torch.ones(5))


def test_what_is_no_grid_of_positions_is_not_interpolated():
    with pytest.raises(ValueError, match=r"its bias is \(9, 4\), which would have to be \(9, 8\)"):
        fit_positions({"bias": torch.zeros(9, 4)}, {"bias": torch.zeros(9, 8)})
