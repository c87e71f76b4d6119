"""Masked language modelling beside the contrast: what is hidden, what it costs, and whom it teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcl.data.identity import mix
from mmcl.methods import Context, Simcse, Step
from mmcl.methods.parts.masked_language import MaskedLanguage, MlmConfig
from mmcl.methods.text.simcse import SimcseConfig
from mmcl.runtime.errors import MmclError

SENTENCES = ["two dogs", "the old cat sleeps in a house", "a bird sings", "a red bird sings on a tree", "the cat runs"]

STEP = Step(0, 1)


@pytest.fixture
def make_simcse(make_text_encoder):
    def make(*roles, **mlm):
        inputs = dict.fromkeys(roles or ("text",), "text")
        return Simcse(SimcseConfig(mlm=MlmConfig(**mlm)), make_text_encoder(), Context(inputs, batch_size=8))

    return make


@pytest.fixture
def masked(make_text_encoder):
    return MaskedLanguage(make_text_encoder().embedder("text"), 0.15)


def test_fifteen_percent_are_predicted_of_which_eighty_are_masked_ten_swapped_ten_shown(masked):
    words = torch.randint(5, 21, (4000, 30))
    shown, hidden = masked.hide(words, None, torch.arange(4000))
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.005)
    of_hidden = shown[hidden]
    assert (of_hidden == masked.mask).float().mean().item() == pytest.approx(0.8, abs=0.01)
    swapped = (of_hidden != masked.mask) & (of_hidden != words[hidden])
    assert swapped.float().mean().item() == pytest.approx(0.1 * 15 / 16, abs=0.01)  # by chance for itself
    assert torch.equal(shown[~hidden], words[~hidden])
    assert of_hidden[swapped].min() == 5  # any ordinary token
    assert of_hidden[swapped].max() == 20


def test_special_tokens_and_padding_are_never_hidden(masked):
    masked.probability = 0.99
    ids = torch.tensor([[2, 7, 1, 8, 3, 0, 0]]).repeat(300, 1)
    _, hidden = masked.hide(ids, None, torch.arange(300))
    assert not hidden[:, ids[0] < 5].any()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0]]).repeat(300, 1)  # where the padding is an ordinary token
    _, hidden = masked.hide(ids, mask, torch.arange(300))
    assert hidden.any(dim=0).tolist() == [False, True, False, False, False, False, False]


def test_what_is_hidden_of_a_row_depends_on_its_seed_alone(masked):
    words = torch.randint(5, 21, (20, 30))
    shown, _ = masked.hide(words, None, torch.arange(20))
    again, _ = masked.hide(words[5:9, :12], None, torch.arange(20)[5:9])  # of another batch, and less padding
    assert torch.equal(again, shown[5:9, :12])
    assert not torch.equal(masked.hide(words, None, torch.arange(20, 40))[0], shown)


def test_the_loss_is_the_mean_cross_entropy_of_the_hidden_tokens(make_simcse, make_batch):
    simcse = make_simcse("anchor", "positive", probability=0.5, weight=0.3)
    batch = make_batch(simcse.encoder, anchor=SENTENCES, positive=SENTENCES[::-1])
    views = simcse.outputs(batch)
    tower, head = simcse.encoder.embedder("text").tower, simcse.masked_language
    losses = []
    for number, role in enumerate(("anchor", "positive")):
        tokens = batch.inputs[role]
        shown, hidden = head.hide(tokens["input_ids"], tokens["attention_mask"], mix(batch.seeds, number))
        with torch.no_grad():
            states = tower.net(input_ids=shown, attention_mask=tokens["attention_mask"]).last_hidden_state
        states = states.double().numpy()
        dense, norm, bias = (x.detach().double().numpy() for x in (head.dense.weight, head.dense.bias, head.bias))
        table = tower.net.embeddings.word_embeddings.weight.detach().double().numpy()
        for row, place in hidden.nonzero().tolist():
            x = dense @ states[row, place] + norm
            x = torch.nn.functional.gelu(torch.tensor(x)).numpy()
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
            logits = table @ x + bias
            losses.append(np.log(np.exp(logits).sum()) - logits[tokens["input_ids"][row, place]])
    loss = simcse.loss(simcse.project(views), STEP)
    assert len(losses) == views.embeddings["mlm"][:, 1].sum()
    assert loss.parts["mlm"].item() == pytest.approx(np.mean(losses), rel=1e-5)
    torch.testing.assert_close(loss.value, loss.parts["contrastive"] + 0.3 * loss.parts["mlm"])


def test_its_gradient_reaches_the_tower_and_its_own_layers(make_simcse, make_batch):
    simcse = make_simcse(probability=0.5)
    outputs = simcse.outputs(make_batch(simcse.encoder, text=SENTENCES))
    simcse.loss(outputs, STEP).parts["mlm"].backward()
    tower = simcse.encoder.embedder("text").tower
    learning = [*tower.net.encoder.parameters(), *simcse.masked_language.parameters(), tower.word_embeddings.weight]
    for parameter in learning:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert tower.word_embeddings.weight.grad.abs().sum() > 0
    assert not any("masked_language" in name for name in simcse.encoder.state_dict())


def test_halves_of_a_batch_hide_and_cost_what_all_of_it_does(make_simcse, make_batch):
    simcse = make_simcse(probability=0.5)
    full = simcse.outputs(make_batch(simcse.encoder, text=SENTENCES)).embeddings["mlm"]
    batch = make_batch(simcse.encoder, text=SENTENCES)
    for part in (slice(0, 2), slice(2, 5)):
        share = make_batch(simcse.encoder, text=SENTENCES[part])
        share.seeds = batch.seeds[part]
        torch.testing.assert_close(simcse.outputs(share).embeddings["mlm"], full[part], rtol=1e-4, atol=1e-5)


def test_a_batch_without_hidden_tokens_and_a_method_that_is_judged_have_no_such_loss(make_simcse, make_batch):
    simcse = make_simcse(probability=1e-6)
    views = simcse.outputs(make_batch(simcse.encoder, text=SENTENCES))
    loss = simcse.loss(simcse.project(views), STEP)
    assert loss.parts["mlm"].item() == 0.0
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in simcse.masked_language.parameters())
    assert "mlm" not in simcse.eval().outputs(make_batch(simcse.encoder, text=SENTENCES)).embeddings


def test_what_cannot_be_taught_is_refused(make_text_encoder, tokenizer):
    with pytest.raises(MmclError, match="frozen"):
        MaskedLanguage(make_text_encoder(frozen=True).embedder("text"), 0.15)
    embedder = make_text_encoder().embedder("text")

    class Bare:
        mask_token_id, unk_token_id = None, 1
        all_special_ids = (0, 1, 2, 3)

        def __len__(self):
            return 21

    embedder.processor.tokenizer = Bare()
    assert MaskedLanguage(embedder, 0.15).mask == 1  # the unknown one stands in
    Bare.unk_token_id = None
    with pytest.raises(MmclError, match="no token to stand for a hidden one"):
        MaskedLanguage(embedder, 0.15)
