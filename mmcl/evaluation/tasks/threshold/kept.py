"""A measured threshold into the folder of the model that it was measured of."""

from __future__ import annotations

from pathlib import Path

from mmcl.encoding.encoder import Encoder
from mmcl.evaluation.tasks.threshold.threshold import Thresholds
from mmcl.formats.folder import DESCRIPTION
from mmcl.formats.threshold import keep_threshold


def keep(
    encoder: Encoder, found: Thresholds, modalities: tuple[str, str], *, data: str, prompt: str | None = None
) -> Path | None:
    """Write it beside the model, where ``mmcl.formats.threshold.read_threshold`` finds it; see ``keep_threshold``.

    Args:
        encoder: that was judged.
        found: what was measured.
        modalities: ``text`` or ``image``, or the name of a tower, of either side of the pairs.
        data: what it was measured on, in a word.
        prompt: the name of the prompt that texts had.

    Returns:
        The file; None where the model came from elsewhere than a folder that mmcl wrote.

    Raises:
        MmclError: what is kept there is damaged.
        OSError: the disk is full or refuses.
    """
    folder = encoder.path
    if folder is None or not (folder / DESCRIPTION).is_file():
        return None
    between = "-".join(sorted(encoder.towers.resolve(modality) for modality in modalities))
    about = {"data": data, "prompt": prompt, "compute": encoder.compute, "encoder": encoder.fingerprint()}
    return keep_threshold(folder, between, {**about, **found.to_dict()})
