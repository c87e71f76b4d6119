from __future__ import annotations

import json

import pytest
import torch

from mmcl.runtime.errors import first_line


class Writes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:'torch.load' received")
@pytest.mark.parametrize("kind", ["objects", "torchscript"])
def test_a_librarys_advice_to_run_a_files_code_is_not_passed_on(tmp_path, kind):
    path = tmp_path / "pytorch_model.bin"
    if kind == "objects":
        torch.save({"object": Writes()}, path)
    else:
        torch.jit.save(torch.jit.script(Writes()), str(path))
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(path, weights_only=True)
    assert "weights_only" not in first_line(caught.value)
    assert ".safetensors" in first_line(caught.value)


def test_code_beside_a_tokenizer_is_named_as_what_stands_in_the_way(tmp_path):
    from transformers import AutoTokenizer

    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(Exception, match="custom code") as caught:
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert first_line(caught.value).startswith("it comes with Python code of its own, which is never run")
