"""SLIP as a method: CLIP's loss of one view and SimCLR's of two others, on one image tower."""

from __future__ import annotations

import pytest
import torch

from mmcl.config.data import AugmentationConfig
from mmcl.data.batches.batch import Batch
from mmcl.losses import info_nce, nt_xent
from mmcl.methods import Clip, Context, Slip, Step
from mmcl.methods.image.simclr import SimclrConfig
from mmcl.methods.image_text.clip import ClipConfig
from mmcl.methods.image_text.slip import VIEWS, SlipConfig
from mmcl.runtime.errors import MmclError

STEP = Step(0, 1)
COLUMNS = {"image": "image", "text": "text"}
AUGMENTATION = AugmentationConfig(crop_scale=(0.3, 1.0), brightness=0.4)
SMALL = SimclrConfig(temperature=0.2, projector={"hidden": [7], "dim": 3})


@pytest.fixture
def make(make_encoder):
    def make(encoder=None, augmentation=AUGMENTATION, columns=COLUMNS, exchange=None, **settings):
        context = Context(columns, 8, exchange, augmentation=augmentation)
        return Slip(SlipConfig(**{"image": SMALL} | settings), encoder or make_encoder(), context).train()

    return make


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_loss_is_clip_s_and_simclr_s_on_the_tower_s_features(make, batch, decoupled):
    slip = make(ssl_scale=0.5, image=SMALL.model_copy(update={"decoupled": decoupled}))
    torch.manual_seed(2)
    views = {"image": batch.inputs["image"], "text": batch.inputs["text"], VIEWS: {"pixels": torch.randn(16, 4)}}
    embeddings = slip.embed(views)
    assert embeddings[VIEWS].shape == (16, 6), "of the tower, not of the head that texts are compared through"
    clip = Clip(ClipConfig(), slip.encoder, Context(COLUMNS, 8))
    outputs = clip.outputs(batch)
    projected = slip.project(type(outputs)(embeddings, outputs.rows))
    loss = slip.loss(projected, STEP)
    # One view after the other, as the authors' code: the head's batch normalisation takes the statistics of each.
    first, second = (slip.heads["projector"](embeddings[VIEWS][number::2]) for number in range(2))
    ids = batch.ids
    of_pairs = info_nce(embeddings["image"], embeddings["text"], 0.07, ids=ids)
    of_images = nt_xent(
        first, second, 0.2, ids=ids[:, 0], decoupled=decoupled
    )  # rows of one text are not the same image
    torch.testing.assert_close(of_pairs, clip.loss(outputs, STEP).value)
    torch.testing.assert_close(loss.value, of_pairs + 0.5 * of_images)
    assert loss.parts.keys() == {"contrastive", "image"}
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in slip.parameters())


def test_the_pair_s_image_is_cropped_and_the_two_others_are_changed_by_the_augmentation(make):
    torch.manual_seed(0)
    rows = torch.arange(6)
    flat = torch.randint(0, 256, (6, 1, 1, 3), dtype=torch.uint8).expand(6, 16, 16, 3)
    inputs = {"image": {"pixels": flat}, "text": {"input_ids": torch.randn(6, 4)}}
    slip = make()
    views = slip.view_inputs(Batch(inputs, torch.stack([rows, rows], dim=1), seeds=rows, rows=rows))
    alone, others = views["image"]["pixels"], views[VIEWS]["pixels"]
    assert (alone.shape[0], others.shape[0]) == (6, 12)
    colour = flat[:, 0, 0].float() / 255
    torch.testing.assert_close(alone.mean(dim=(2, 3)), colour, rtol=0, atol=1e-3)  # a crop of one colour is that colour
    changed = (others.unflatten(0, (6, 2)).mean(dim=(3, 4)) - colour[:, None]).abs().amax(dim=2)
    assert (changed > 0.01).float().mean() > 0.7  # brightness


def test_what_does_not_fit_ends_in_one_line(make, make_encoder):
    with pytest.raises(MmclError, match="method 'slip': without augmentation both views of an image are the same"):
        make(augmentation=None)
    with pytest.raises(MmclError, match=r"model.towers.text: the first tower of method 'slip' is that of the images"):
        make(columns={"text": "text", "image": "image"})
    assert make(exchange="ring").across == "ring"
    assert make(exchange="gather").across is None, "every process has the global batch, for the projector's statistics"
