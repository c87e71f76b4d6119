"""Ensembles in weight space: their ends, their middle, their choice."""

from __future__ import annotations

import pytest
import torch

from mmcl.config.evaluation import EvaluationConfig
from mmcl.config.model import LoraConfig
from mmcl.formats.lora import add_lora
from mmcl.runtime.errors import MmclError
from mmcl.training.callbacks.ensemble import choose_share, interpolated, load_start, save_start
from mmcl.training.callbacks.evaluations import Evaluations
from mmcl.training.optimization.average import WeightAverage


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def learn(net, steps=5):
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.03)
    for _ in range(steps):
        net(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_the_ends_are_the_models_themselves_bit_for_bit_and_the_middle_is_their_mean(net):
    start = state(net)
    learn(net)
    learned = state(net)
    assert learned["1.num_batches_tracked"] == 5
    with interpolated(net, start, 0.0):
        assert all(torch.equal(tensor, start[name]) for name, tensor in net.state_dict().items())
    with interpolated(net, start, 1.0):
        assert all(torch.equal(tensor, learned[name]) for name, tensor in net.state_dict().items())
    with interpolated(net, start, 0.5):
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, ((start[name].double() + learned[name].double()) / 2).float())
        assert not torch.equal(net[1].running_var, learned["1.running_var"]), "running statistics belong to the weights"
    assert all(torch.equal(tensor, learned[name]) for name, tensor in net.state_dict().items())


def test_within_an_average_it_interpolates_the_average(net):
    start = state(net)
    average = WeightAverage(net, set(start), 0.9)
    learn(net)
    average.update(1)
    with average.applied(), interpolated(net, start, 1.0):
        assert torch.equal(net[0].weight, average.values["0.weight"])


def test_the_start_is_kept_in_a_file_of_what_learns(net, tmp_path):
    net[0].requires_grad_(False)
    names = {name for name in net.state_dict() if not name.startswith("0.")}
    start, path = state(net), tmp_path / "start.safetensors"
    save_start(net, names, path)
    learn(net)
    kept = load_start(net, names, path)
    assert kept.keys() == names
    assert all(torch.equal(tensor, start[name]) for name, tensor in kept.items())
    with pytest.raises(MmclError, match=r"another model \(first difference: 0\.weight\)"):
        load_start(torch.nn.Sequential(torch.nn.Linear(3, 4)), {"0.weight"}, path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(MmclError, match=r"start\.safetensors: the starting weights, which training\.wise_ft needs"):
        load_start(net, names, path)
    with pytest.raises(MmclError, match="cannot be read"):
        load_start(net, names, tmp_path / "none.safetensors")


def test_adapters_change_the_weights_by_exactly_the_share():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])}))
    inner = net[1]
    add_lora(inner, LoraConfig(rank=2))
    layer = inner["blocks"][0][0]
    start = {name: p.detach().clone() for name, p in inner.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    inputs, weight = torch.randn(5, 3), layer.base_layer.weight
    change = layer.get_delta_weight("default").detach()
    for alpha in (0.0, 0.3, 1.0):
        with torch.no_grad(), interpolated(inner, start, alpha):
            torch.testing.assert_close(layer(inputs), inputs @ (weight + alpha * change).T + layer.base_layer.bias)


def test_the_best_judged_share_is_chosen_the_first_of_equals_and_lower_ranks_are_better(net):
    start = state(net)
    learn(net)
    learned = state(net)
    middle = {name: torch.lerp(start[name], learned[name], 0.5) for name in ("0.weight",)}

    def judge():
        distance = (net[0].weight - middle["0.weight"]).norm().item()
        return {"dev/hit@1": -distance, "dev/median_rank": distance}

    for metric in ("dev/hit@1", "dev/median_rank"):
        chosen, table = choose_share(net, start, (0.2, 0.5, 0.8, 0.5), judge, by(metric))
        assert chosen == 0.5
        assert list(table) == [0.2, 0.5, 0.8]
        assert table[0.2][metric] == pytest.approx(table[0.8][metric], rel=1e-4)
    assert choose_share(net, start, (0.8, 0.5), judge, by(None))[0] == 0.8
    undefined = iter([{}, {"sts/spearman": 0.1}, {}])
    assert choose_share(net, start, (0.2, 0.5, 0.8), lambda: next(undefined), by("sts/spearman"))[0] == 0.5
    assert choose_share(net, start, (0.8,), dict, by(None)) == (0.8, {0.8: {}})
    assert all(torch.equal(tensor, learned[name]) for name, tensor in net.state_dict().items())


def by(best):
    """Which of two sets of metrics is the better one by the metric ``best``."""
    sources = {"dev": {"source": "x"}, "sts": {"source": "y", "task": "sts"}}
    config = EvaluationConfig.model_construct(sources=EvaluationConfig(sources=sources).sources, best=best)
    return Evaluations({}, None, None, config, every=1, steps=1, folder=None, metrics=None).is_better
