"""Models of sentence-transformers put together of all its modules, against that library itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmcl
from mmcl.formats.export import cannot_export
from mmcl.runtime.errors import MmclError

from .made import TEXTS, theirs

WORDS = ["dog", "red", "blue", "A", "small", "a", "NASA", "it's"]
SENTENCES = [*TEXTS, "The dog, (red) and SMALL; NASA's dog isn't it's dog!", "nothing known here", "dog dog a red"]


def modules():
    """The classes of that library's modules."""
    from sentence_transformers.base import modules as base
    from sentence_transformers.sentence_transformer import modules as own

    return {name: getattr(own, name, None) or getattr(base, name) for name in {*own.__all__, *base.__all__}}


def word_embeddings(kinds, **settings):
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    tokenizer = WhitespaceTokenizer(WORDS, stop_words=["a", "and"], **settings)
    return kinds["WordEmbeddings"](tokenizer, torch.randn(len(WORDS), 6))


def static(kinds):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate(["[UNK]", "[PAD]", "[CLS]", *WORDS, "dogs"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return kinds["StaticEmbedding"](tokenizer, embedding_dim=6)


def transformer(kinds, source, **config):
    return kinds["Transformer"](str(source), max_seq_length=20, config_kwargs=config)


CHAINS = {
    "static": lambda k, _: [static(k)],
    "static, dense and norm": lambda k, _: [static(k), k["Dense"](6, 4), k["LayerNorm"](4), k["Normalize"]()],
    "words": lambda k, _: [word_embeddings(k), k["Pooling"](6, "mean")],
    "words in lower case": lambda k, _: [
        word_embeddings(k, do_lower_case=True), k["Pooling"](6, ("mean", "mean_sqrt_len_tokens")),
    ],
    "weighted words": lambda k, _: [
        word_embeddings(k),
        k["WordWeights"](WORDS, {"dog": 0.3, "red": 2.0}, unknown_word_weight=0.7),
        k["Pooling"](6, "mean"),
    ],
    "convolutions": lambda k, _: [
        word_embeddings(k), k["CNN"](6, 4, [1, 3, 5]), k["CNN"](12, 5, [3]), k["Pooling"](5, "mean"),
    ],
    "recurrence": lambda k, _: [word_embeddings(k), k["LSTM"](6, 5, num_layers=2), k["Pooling"](10, "mean")],
    "recurrence in one direction": lambda k, _: [
        word_embeddings(k), k["LSTM"](6, 5, bidirectional=False), k["Pooling"](5, "mean"), k["Dense"](5, 3),
    ],
    "counts": lambda k, _: [k["BoW"](WORDS, {"dog": 0.3, "Red": 2.0}, unknown_word_weight=0.7)],
    "counts of different words, dense": lambda k, _: [
        k["BoW"](WORDS, cumulative_term_frequency=False), k["Dense"](len(WORDS), 4),
    ],
    "layers": lambda k, source: [
        transformer(k, source, output_hidden_states=True),
        k["WeightedLayerPooling"](16, 2, layer_start=1, layer_weights=torch.nn.Parameter(torch.tensor([0.2, 1.5]))),
        k["Pooling"](16, "mean"),
    ],
    "layers that the transformer does not give": lambda k, source: [
        transformer(k, source), k["WeightedLayerPooling"](16, 2, layer_start=0), k["Pooling"](16, "mean"),
    ],
    "dense on tokens": lambda k, source: [
        transformer(k, source),
        k["Dense"](16, 10, module_input_name="token_embeddings"),
        k["Normalize"]("token_embeddings"),
        k["Pooling"](10, ("max", "lasttoken")),
        k["Dropout"](0.5),
    ],
    "convolutions of states": lambda k, source: [transformer(k, source), k["CNN"](16, 4, [3]), k["Pooling"](4, "mean")],
    "normalised in between": lambda k, source: [
        transformer(k, source),
        k["Pooling"](16, "mean"),
        k["Normalize"](),
        k["Dense"](16, 12, activation_function=torch.nn.GELU()),
        k["LayerNorm"](12),
        k["Dropout"](0.1),
        k["Dense"](12, 8, bias=False, use_residual=True),
        k["Dense"](8, 8, use_residual=True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_every_chain_opens_and_goes_back(library, plain, tmp_path, chain):
    """One text at a time there: its convolutions read the padding that stands beside others."""
    torch.manual_seed(0)
    model = library.SentenceTransformer(modules=CHAINS[chain](modules(), plain["bert"]), device="cpu")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save(str(tmp_path / "theirs"))
    expected = theirs(library, tmp_path / "theirs").encode(SENTENCES, batch_size=1)
    assert np.ptp(expected, axis=0).max() > 1e-2
    encoder = mmcl.load(tmp_path / "theirs", dtype="float32")
    encoder.save(tmp_path / "ours")
    for opened in (encoder, mmcl.load(tmp_path / "ours", dtype="float32")):
        normalize = opened.conventions.normalize
        np.testing.assert_allclose(opened.encode(SENTENCES, normalize=normalize), expected, atol=1e-5)
        np.testing.assert_allclose(opened.encode(SENTENCES[0], normalize=normalize), expected[0], atol=1e-5)
        if not normalize:
            np.testing.assert_allclose(opened.embed(SENTENCES).detach(), expected, atol=1e-5)
    again = theirs(library, tmp_path / "ours").encode(SENTENCES, batch_size=1)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    (tmp_path / "ours" / "mmcl.json").unlink()  # now it is theirs alone
    opened = mmcl.load(tmp_path / "ours", dtype="float32")
    np.testing.assert_allclose(opened.encode(SENTENCES, normalize=normalize), expected, atol=1e-5)


def test_words_that_only_another_library_can_split_are_refused(library, tmp_path):
    model = library.SentenceTransformer(modules=CHAINS["words"](modules(), None), device="cpu")
    model.save(str(tmp_path))
    (path,) = tmp_path.rglob("wordembedding_config.json")
    path.write_text(path.read_text().replace("WhitespaceTokenizer", "PhraseTokenizer"))
    with pytest.raises(MmclError, match="split texts by a PhraseTokenizer") as caught:
        mmcl.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("target", ["transformers", "onnx"])
@pytest.mark.parametrize("chain", ["words", "dense on tokens"])
def test_what_a_network_of_transformers_alone_is_not_goes_nowhere_else(library, plain, tmp_path, chain, target):
    """The graph of ONNX is of the network, not of what follows it."""
    model = library.SentenceTransformer(modules=CHAINS[chain](modules(), plain["bert"]), device="cpu")
    model.save(str(tmp_path / "theirs"))
    why = cannot_export(mmcl.load(tmp_path / "theirs").towers, target)
    assert (why is None) == (chain != "words" and target == "onnx")
