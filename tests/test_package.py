"""What ``import mmcl`` gives."""

import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

import mmcl
from mmcl.runtime.errors import MmclError


def test_every_public_name_is_there():
    for name in mmcl.__all__:
        assert getattr(mmcl, name) is not None
    assert mmcl.encoding.encode_source.__name__ == "encode_source"
    assert mmcl.reports.judge_run.__name__ == "judge_run"
    with pytest.raises(AttributeError, match="no attribute 'encodings'"):
        mmcl.encodings  # noqa: B018


def test_importing_it_imports_no_torch():
    code = "import sys, mmcl; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["--help", "train --help", "eval retrieval --help", "data list"])
def test_help_and_lists_import_no_torch(command):
    code = (
        "import atexit, sys; sys.argv[0] = 'mmcl'; from mmcl.cli import main\n"
        "atexit.register(lambda: print('imported:', {'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: set()\n")


def test_no_two_files_import_each_other():
    imports = grimp.build_graph("mmcl", cache_dir=None)  # deferred imports and those for type checking among them
    graph = {file: imports.find_modules_directly_imported_by(file) for file in imports.modules}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the files of a circle
    assert set(order) == imports.modules


def test_a_missing_column_comes_with_the_setting_that_names_it(tmp_path, shapes_config):
    (tmp_path / "pairs.csv").write_text("path,caption\na.png,a cat\n")
    config = shapes_config | {
        "data": {"train": {"source": str(tmp_path / "pairs.csv")}, "columns": {"text": "caption"}}
    }
    with pytest.raises(
        MmclError, match=r"no column 'image'; it has path, caption; name another with data.columns.image"
    ):
        mmcl.train(config, out=tmp_path / "run")


def test_every_package_is_installed():
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(file.parent.relative_to(root).parts) for file in (root / "mmcl").rglob("__init__.py")}
    assert set(listed) == found | {"mmcl.configs"}
