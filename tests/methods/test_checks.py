"""A method that breaks its contract is told by class, fault and cure, rather than by an error of Python's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmcl.config.methods import MethodConfig
from mmcl.config.training import TrainingConfig
from mmcl.data.batches.views import View
from mmcl.methods import Context, Loss, Method, Step
from mmcl.models.heads import Head, Prototypes
from mmcl.models.layers import Dense
from mmcl.runtime.errors import MmclError
from mmcl.training.optimization.check_method import RESERVED, check_metrics
from mmcl.training.optimization.step import TrainStep


class Mine(Method):
    """The mean square of the embeddings of images."""

    Config = MethodConfig

    @classmethod
    def columns_of(cls, config):
        return {"image": "image"}

    def views(self):
        return {"image": View("image", "image")}

    def embed(self, inputs):
        return {"image": self.encoder.embedder("image")(**inputs["image"])}

    def loss(self, outputs, step):
        value = outputs.embeddings["image"].square().mean()
        return Loss(value, {"square": value})


@pytest.fixture
def run(make_encoder, batch):
    """One step of ``Mine``, with some of its methods replaced."""

    def run(**replaced):
        kind = type("Mine", (Mine,), replaced)
        method = kind(MethodConfig(name="mine"), make_encoder(), Context({"image": "image"}, 8))
        optimizer = torch.optim.SGD(method.parameters())
        step = TrainStep(method, method, optimizer, TrainingConfig(), torch.device("cpu"), "float32", None)
        return step([batch], Step(0, 1), 0.1)

    return run


def returns(value):
    return lambda self, *_: value


def test_what_keeps_the_contract_passes(run):
    result = run()
    assert result.parts == {"square": result.loss}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"loss": returns(torch.ones(()))}, r"Mine\.loss returned a value of type Tensor of shape \(\); return Loss"),
        ({"loss": returns(Loss(1.0))}, r"Mine\.loss: 'value' of the Loss is of type float; give a tensor of one"),
        ({"loss": returns(Loss(torch.ones(8)))}, r"'value' of the Loss is of type Tensor of shape \(8,\); give"),
        ({"loss": returns(Loss(torch.tensor(1.0)))}, r"Mine\.loss: no gradient flows from its value .* without detach"),
        (
            {"loss": lambda self, outputs, step: Loss(Mine.loss(self, outputs, step).value, {"half": 0.5})},
            r"Mine\.loss: 'half' of the Loss is of type float",
        ),
        (
            {"loss": lambda self, outputs, step: Loss(Mine.loss(self, outputs, step).value, {"lr": torch.ones(())})},
            r"Mine\.loss: the log has a 'lr' already; give that part another name",
        ),
        (
            {"embed": lambda self, inputs: {"picture": Mine.embed(self, inputs)["image"]}},
            r"Mine\.embed returned 'picture', and not 'image', which is in views\(\)",
        ),
        (
            {"embed": lambda self, inputs: Mine.embed(self, inputs)["image"]},
            r"Mine\.embed returned a value of type Tensor of shape \(8, 5\); return a dict of tensors",
        ),
        ({"embed": returns({"image": [1.0]})}, r"Mine\.embed: 'image' is of type list; return a tensor"),
        ({"embed_keys": returns(None)}, r"Mine\.embed_keys returned a value of type NoneType; return a dict"),
    ],
)
def test_a_step_names_what_breaks_the_contract(run, replaced, message):
    with pytest.raises(MmclError, match=message):
        run(**replaced)


def test_a_missing_key_of_the_method_s_own_is_no_missing_view(run):
    with pytest.raises(KeyError, match="own"):
        run(loss=lambda self, outputs, step: {}["own"])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, r"Mine\.metrics returned a value of type NoneType; return a dict of floats"),
        ({"rank": torch.ones(())}, r"Mine\.metrics: 'rank' is of type Tensor of shape \(\); return a float"),
        ({"rank": np.float32(1)}, r"'rank' is of type float32"),
        ({"rank": True}, r"'rank' is of type bool"),
        ({"square": 1.0}, r"Mine\.metrics: the log has a 'square' already; give that metric another name"),
        *(({name: 1.0}, f"the log has a '{name}' already") for name in sorted(RESERVED)),
    ],
)
def test_metrics_are_numbers_by_names_of_their_own(make_encoder, metrics, message):
    method = Mine(MethodConfig(name="mine"), make_encoder(), Context({"image": "image"}, 8))
    check_metrics(method, {"rank": 1.5, "count": 3}, {"loss": 1.0})
    with pytest.raises(MmclError, match=message):
        check_metrics(method, metrics, {"loss": 1.0, "square": 1.0})


def test_a_head_is_one_that_a_model_folder_describes(make_encoder):
    encoder = make_encoder()
    method = Mine(MethodConfig(name="mine"), encoder, Context({"image": "image"}, 8))
    message = r"Mine\.add_head: 'projector' is of type Linear, not Head; make it by mlp_head or Head\.from_layers"
    with pytest.raises(MmclError, match=message):
        method.add_head("projector", lambda: nn.Linear(5, 3))
    head = method.add_head("projector", lambda: Head.from_layers(5, [Dense(3)]))
    assert method.add_head("prototypes", lambda: Prototypes(3, 4)) is method.heads["prototypes"]
    encoder.heads = {"projector": head}
    with pytest.raises(MmclError, match=message):
        method.add_head("projector", lambda: nn.Linear(5, 3))
