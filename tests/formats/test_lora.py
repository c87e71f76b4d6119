"""Low-rank adapters: they start as nothing, only they learn, and merged they leave an ordinary network."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers

import mmcl
from mmcl.config.model import LoraConfig, TokenizerConfig
from mmcl.data.processors.train_tokenizer import train_tokenizer
from mmcl.formats.lora import add_lora, has_lora, merge_lora
from mmcl.models.blocks import freeze
from mmcl.runtime.errors import MmclError

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2}
VISION = {"layers": 2, "width": 32, "head_width": 16, "image_size": 16, "patch_size": 8}
BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def timm_vit():
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=8, depth=2, embed_dim=24, num_heads=2
    )


NETS = {
    "timm": timm_vit,
    "convnext": lambda: timm.create_model(
        "convnext_tiny", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), ls_init_value=1.0
    ),
    "open_clip": lambda: open_clip.CLIP(8, VISION, TEXT).visual,
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False),
}


@pytest.fixture(params=list(NETS))
def net(request):
    torch.manual_seed(0)
    return NETS[request.param]().eval()


def run(net):
    if isinstance(net, transformers.BertModel):
        return net(torch.tensor([[1, 5, 9, 7], [2, 8, 3, 4]])).last_hidden_state
    side = 16 if hasattr(net, "positional_embedding") or hasattr(net, "pos_embed") else 32
    return net(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)))


def learn(net, steps=3):
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        run(net).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adapters_start_as_nothing_learn_alone_and_merge_into_the_same_function(net):
    names, before = set(net.state_dict()), run(net).detach()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    add_lora(net, LoraConfig(rank=2))
    torch.testing.assert_close(run(net), before, atol=1e-6, rtol=0)

    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    run(net).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == learning
    net.zero_grad()
    learn(net)
    learned = run(net).detach()
    assert (learned - before).abs().max() > 0.01
    frozen = {name.replace(".base_layer.", "."): t for name, t in net.state_dict().items() if ".lora_" not in name}
    assert frozen.keys() == names
    assert all(torch.equal(weights[name], tensor) for name, tensor in frozen.items()), "bit for bit: nothing drifts"

    assert has_lora(net)
    merge_lora(net)
    assert not has_lora(net)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(run(net), learned, atol=1e-5, rtol=1e-5)
    merge_lora(net)  # again: nothing happens


def test_the_state_of_adapters_alone_restores_them(net):
    add_lora(net, LoraConfig(rank=2))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    learn(net)
    learned = run(net).detach()
    adapters = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    net.load_state_dict(start)
    assert not torch.equal(run(net), learned)
    net.load_state_dict(adapters, strict=False)
    assert torch.equal(run(net), learned)


def test_merged_weights_equal_the_papers_equation():
    torch.manual_seed(0)
    net = timm_vit()
    layer = net.blocks[1].mlp.fc1
    weight = layer.weight.detach().clone()
    add_lora(net, LoraConfig(rank=3, alpha=6.0, targets=["fc1"]))
    adapted = net.blocks[1].mlp.fc1
    down, up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    with torch.no_grad():
        up.normal_()
    assert down.shape == (3, 24)
    merge_lora(net)
    assert net.blocks[1].mlp.fc1 is layer
    torch.testing.assert_close(layer.weight, weight + 6.0 / 3 * up @ down)


def test_targets_choose_layers_and_frozen_blocks_get_no_adapters():
    net = timm_vit()
    freeze(net, 1)
    add_lora(net, LoraConfig(targets=["qkv", "fc2"]))
    learning = {name.split(".lora_")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"blocks.1.attn.qkv", "blocks.1.mlp.fc2"}


def test_convolutions_by_name_and_statistics_that_stand_still():
    net = timm.create_model("resnet10t", num_classes=0, channels=[8, 8, 16, 16], stem_width=8)
    with pytest.raises(MmclError, match=r"no linear layers in blocks that learn; name convolutions"):
        add_lora(net, LoraConfig())
    names = set(net.state_dict())
    still = add_lora(net, LoraConfig(rank=2, targets=["conv1"]))
    assert {type(module) for module in still} == {torch.nn.BatchNorm2d}
    net.eval()
    learn(net)
    learned = run(net).detach()
    merge_lora(net)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(run(net), learned, atol=1e-5, rtol=1e-5)


def test_what_is_skipped_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="mmcl"):
        add_lora(NETS["open_clip"](), LoraConfig())
    assert "output projections of 2 attention layers are not adapted" in caplog.text


def test_mistakes_are_reported_in_one_line(monkeypatch):
    with pytest.raises(MmclError, match=r"lora.targets: no layer of VisionTransformer .* 'qvk'; did you mean 'qkv'"):
        add_lora(timm_vit(), LoraConfig(targets=["qvk"]))
    with pytest.raises(MmclError, match=r"lora.dropout is 0.1, .* set it to 0"):
        add_lora(NETS["open_clip"](), LoraConfig(dropout=0.1))
    add_lora(NETS["open_clip"](), LoraConfig(dropout=0.1, targets=["c_fc", "c_proj"]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MmclError, match=r"pip install 'mmcl\[lora\]'"):
        add_lora(timm_vit(), LoraConfig())


TEXTS = ["two dogs", "a red bicycle on a beach", "dogs on a red bicycle"]
QWEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def adapted(tmp_path, monkeypatch):
    """A base model, adapters for it as peft saves them, and peft's own model of the two."""
    import peft
    from transformers.integrations import peft as integration

    # Some releases of transformers save adapters only with a peft that is yet to be released.
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", peft.__version__)

    def make(kind="BertModel", **options):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=40), 20)
        settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "intermediate_size": 24}
        architecture = BERT if kind == "BertModel" else QWEN
        config = getattr(transformers, f"{kind.removesuffix('Model').removesuffix('ForCausalLM')}Config")
        base = getattr(transformers, kind)(config(**{**architecture, **settings}))
        base.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")  # of a class by the model's kind
        base = type(base).from_pretrained(tmp_path / "base")  # which knows its folder, as peft notes it
        targets = ["query", "value", "dense"] if kind == "BertModel" else ["q_proj", "down_proj"]
        theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=targets, **options))
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:  # as after training: fresh adapters change nothing
                torch.nn.init.normal_(parameter, std=0.3)
        theirs.save_pretrained(tmp_path / "adapters")
        return theirs.eval(), tokenizer

    return make


def pooled(model, tokenizer, how):
    """Unit vectors from the token states of a model of peft's."""
    vectors = []
    for text in TEXTS:
        with torch.no_grad():
            output = model(**tokenizer(text, truncation=True, return_tensors="pt"), output_hidden_states=True)
        states = output.hidden_states[-1][0]
        vectors.append(states.mean(dim=0) if how == "mean" else states[-1])
    return torch.nn.functional.normalize(torch.stack(vectors), dim=1).numpy()


@pytest.mark.parametrize(
    ("kind", "how", "options"),
    [
        ("BertModel", "mean", {}),
        ("BertModel", "mean", {"use_dora": True, "use_rslora": True}),
        ("Qwen2ForCausalLM", "last", {"task_type": "CAUSAL_LM"}),
    ],
)
def test_a_folder_of_adapters_opens_as_peft_opens_it(adapted, tmp_path, kind, how, options):
    expected = pooled(*adapted(kind, **options), how)
    encoder = mmcl.load(tmp_path / "adapters", dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    net = encoder.embedder("text").tower.net
    assert not has_lora(net)
    assert all(parameter.requires_grad for name, parameter in net.named_parameters() if "pooler" not in name)
    saved = mmcl.load(encoder.save(tmp_path / "merged"), dtype="float32")
    np.testing.assert_allclose(saved.encode(TEXTS), expected, atol=1e-5)


def test_adapters_within_a_sentence_transformers_folder(adapted, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    adapted()
    modules = [Transformer(str(tmp_path / "adapters"), max_seq_length=9, tokenizer_name_or_path=str(tmp_path / "base"))]
    modules.append(Pooling(16, "max"))
    model = library.SentenceTransformer(modules=modules, device="cpu", prompts={"query": "red "})
    model.save(str(tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "adapter_model.safetensors").is_file()
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    expected = model.encode(TEXTS, prompt_name="query", normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt="query"), expected, atol=1e-5)
    assert encoder.embedder("text").processor.max_tokens == 9


def test_word_weights_beside_adapters_are_read(adapted, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordWeights

    adapted()
    transformer = Transformer(str(tmp_path / "adapters"), tokenizer_name_or_path=str(tmp_path / "base"))
    vocabulary = list(transformer.tokenizer.get_vocab())
    weights = WordWeights(vocabulary, {token: 0.1 + place for place, token in enumerate(vocabulary)})
    model = library.SentenceTransformer(modules=[transformer, weights, Pooling(16, "mean")], device="cpu")
    model.save(str(tmp_path / "theirs"))
    expected = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(mmcl.load(tmp_path / "theirs", dtype="float32").encode(TEXTS), expected, atol=1e-5)


def test_adapters_that_cannot_be_merged_are_refused_in_one_line(adapted, tmp_path, monkeypatch):
    adapted()

    def refused(name, message, **settings):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "adapters", copy)
        path = copy / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        if name == "weights":
            (copy / "adapter_model.safetensors").unlink()
        with pytest.raises(MmclError, match=message):
            mmcl.load(copy)

    refused("kind", "adapters of the kind IA3 are not supported", peft_type="IA3")
    refused("nameless", "does not say what model it adapts", base_model_name_or_path=None)
    refused("whole", r"holds full layers \(pooler\)", modules_to_save=["pooler"])
    refused("weights", r"adapter_model\.safetensors\) are missing")
    refused("other", "of another model than BertModel", target_modules=["key"])
    refused("rank", "do not suit BertModel|of another model than BertModel", r=2)
    refused("gone", "no such folder", base_model_name_or_path=str(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MmclError, match=r"a LoRA adapter needs the package peft: pip install 'mmcl\[lora\]'"):
        mmcl.load(tmp_path / "adapters", dtype="float32")
