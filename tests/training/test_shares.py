"""Two processes embed what one would, and leave the model as it was."""

from __future__ import annotations

import pytest

from .processes import launch

PREPARE = """
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcl.models.image.embedder import ImageEmbedder
from mmcl.models.text.embedder import TextEmbedder
from mmcl.config.model import HeadConfig
from mmcl.models.towers import Towers
from mmcl.models.heads import Head
from mmcl.runtime.sharding import shard
from mmcl.training.optimization.average import WeightAverage
from mmcl.encoding.shares import embed

dist.init_process_group("gloo")
torch.manual_seed(0)
data = torch.randn(9, 4)

class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6)

    def forward(self, input_ids):
        return self.norm(self.net(input_ids))

def new_encoder():
    torch.manual_seed(1)
    kinds = {"image": ImageEmbedder, "text": TextEmbedder}
    return Towers({name: kind(None, Tower(), Head(HeadConfig(), 6, 5)) for name, kind in kinds.items()}, 5)

def vectors_of(encoder):
    return torch.from_numpy(embed(encoder, "text", lambda places: {"input_ids": data[places]}, len(data)))
"""

STATISTICS = (
    PREPARE
    + """
encoder = new_encoder()
with torch.no_grad():
    expected = F.normalize(encoder.eval().embedder("text")(input_ids=data), dim=1)
image, text = (encoder.embedder(name).tower.norm for name in ("image", "text"))
for layer in (image, text):
    layer.running_mean += dist.get_rank()
torch.testing.assert_close(vectors_of(encoder), expected)
assert (text.running_mean == 0).all()
assert (image.running_mean == dist.get_rank()).all()  # what nobody embeds with is not sent around
dist.barrier()
dist.destroy_process_group()
"""
)

AVERAGE = (
    PREPARE
    + """
def learn(judged):
    encoder = new_encoder()
    embedder = encoder.embedder("text")
    shard(embedder, [embedder.tower.net], torch.device("cpu"))
    optimizer = torch.optim.SGD(embedder.parameters(), lr=0.1)
    average = WeightAverage(encoder, set(encoder.state_dict()), 0.9)
    losses, evaluated = [], []
    for step in range(1, 5):
        loss = embedder(input_ids=data).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        losses.append(loss.item())
        if judged:
            with average.applied():
                evaluated.append(vectors_of(encoder))
        if judged and step % 2 == 0:
            evaluated.append(vectors_of(encoder))
    return losses, evaluated

losses, evaluated = learn(judged=True)
assert losses == learn(judged=False)[0]
assert len(set(losses)) == len(losses)
assert len({vectors.sum().item() for vectors in evaluated}) == len(evaluated) == 6
dist.barrier()
dist.destroy_process_group()
"""
)


def test_all_embed_by_the_running_statistics_of_the_first_process():
    launch(STATISTICS)


@pytest.mark.slow
def test_shards_learn_on_from_their_own_weights_after_their_average_was_judged():
    """FSDP keeps whole, for the next pass, what a pass without gradient has gathered: here of the average."""
    launch(AVERAGE)
