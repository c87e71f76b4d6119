"""Items prepared ahead."""

import pytest

from mmcl.runtime.prefetch import prefetch


def test_prefetching_keeps_order_passes_errors_on_and_ends_its_thread():
    assert list(prefetch(iter(range(50)))) == list(range(50))

    def broken():
        yield 1
        raise KeyError("here")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(KeyError, match="here"):
        next(items)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()
