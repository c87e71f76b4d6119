"""No call in the package can run code that a file, a folder or the hub brings: looked for in its source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mmcl

TRUST = "trust_remote_code=False has to be given"
FORBIDDEN = {
    "pickle": {"load", "loads", "Unpickler"},
    "joblib": {"load"},
    "dill": {"load", "loads"},
    "jit": {"load"},  # torch.jit
    "hub": {"load", "load_state_dict_from_url"},  # torch.hub
    "pd": {"read_pickle"},
}
ALLOWED = {("formats/torchscript.py", "pickle.Unpickler")}  # which makes nothing but its own classes
WORTH_PARSING = re.compile(
    r"from_pretrained|from_config|trust_remote_code|torch\.load|np\.load|yaml\.load|pickle|joblib|dill|jit\.|hub\.load"
    r"|(?<![.\w])(eval|exec)\("
)


def complaints(source, file="given.py"):
    """What of ``source`` could run somebody's code."""
    found: list[str] = []
    if not WORTH_PARSING.search(source):
        return found
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Call, ast.Attribute)):
            continue
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
            if node.attr in FORBIDDEN.get(owner, ()) and (file, f"{owner}.{node.attr}") not in ALLOWED:
                found.append(f"{file}:{node.lineno}: {owner}.{node.attr} runs code")
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        hub = called == "from_pretrained" or (called == "from_config" and owner.startswith("Auto"))
        if hub and owner != "PeftConfig" and "PeftConfig" not in ast.unparse(node.func):
            if given.get("trust_remote_code") is not False:
                found.append(f"{file}:{node.lineno}: {TRUST}")
        elif "trust_remote_code" in given and given["trust_remote_code"] is not False:
            found.append(f"{file}:{node.lineno}: {TRUST}")
        elif (owner, called) == ("torch", "load") and given.get("weights_only") is not True:
            found.append(f"{file}:{node.lineno}: torch.load without weights_only=True")
        elif given.get("allow_pickle", False) is not False:
            found.append(f"{file}:{node.lineno}: allow_pickle")
        elif (owner, called) == ("yaml", "load") and "Loader" not in given:
            found.append(f"{file}:{node.lineno}: yaml.load without a safe loader")
        elif isinstance(node.func, ast.Name) and called in ("eval", "exec"):
            found.append(f"{file}:{node.lineno}: {called}")
    return found


def test_the_package_runs_no_code_of_files():
    root = Path(mmcl.__file__).parent
    files = sorted(root.rglob("*.py"))
    assert len(files) > 100
    found = [line for path in files for line in complaints(path.read_text(), path.relative_to(root).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(kept)",
        "AutoModel.from_config(config)",
        "kind.from_pretrained(x, trust_remote_code=True)",
        "transformers.AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.jit.load(path)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(b'')",
        "from torch import jit; jit.load(path)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_the_rule_sees_what_could(source):
    assert complaints(source)
