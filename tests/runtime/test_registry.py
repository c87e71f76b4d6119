"""Entry points of installed packages are found by name, imported when asked for, and named when they fail."""

from __future__ import annotations

import sys

import pytest

from mmcl.runtime.errors import MmclError
from mmcl.runtime.registry import Registry


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with entry points, as pip would install it."""
    info = tmp_path / "colours-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[mmcl.tests]\nred = colours_:RED\nbroken = colours_:GONE\nbuiltin = colours_:RED\n"
    )
    (tmp_path / "colours_.py").write_text("RED = 'ff0000'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("colours_", None)


def test_the_packages_own_and_those_of_others_are_found_by_name(installed, caplog):
    registry = Registry("mmcl.tests", "colour", {"builtin": "math:pi"})
    assert list(registry) == ["builtin", "broken", "red"]
    assert "colours_" not in sys.modules, "nothing is imported before it is asked for"
    assert registry["red"] == "ff0000"
    assert registry.origin("red") == "colours 1.2"
    assert registry["builtin"] == pytest.approx(3.14159, abs=1e-4)
    assert registry.origin("builtin") == "mmcl"
    assert "colour 'builtin': colours_:RED is ignored" in caplog.text


def test_what_cannot_be_had_is_said_in_one_line(installed):
    registry = Registry("mmcl.tests", "colour", {})
    with pytest.raises(MmclError, match=r"no colour 'rad'; did you mean 'red'\?"):
        registry["rad"]
    with pytest.raises(MmclError, match=r"colour 'broken': colours_:GONE of colours 1.2 cannot be imported"):
        registry["broken"]
