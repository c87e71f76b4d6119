"""Where the rows come from, what to do with them, and how training changes them at random."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmcl.config.section import Fraction, Positive, Range, Section


class SourceConfig(Section):
    """Where rows come from."""

    source: str
    """A CSV, TSV, JSON-lines, Parquet or text file, a folder, `sample:NAME`, `torchvision:CIFAR10:FOLDER`, or the name
    of a data set on the hub."""
    split: str | None = None
    """The part of the source to read, where it has parts."""
    separator: str | None = None
    """The character between the fields of a CSV file, where it is neither `,` nor a tab, `;` or `|`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role to column name in this source, where it differs from `data.columns`."""


class TrainSourceConfig(SourceConfig):
    """Where training rows come from. Beside tables and folders: WebDataset tar shards, read as a stream, named by a
    path, a URL or `pipe:COMMAND` with braces for numbers, such as `shards/train-{0000..0019}.tar`. A command is run in
    a shell, and only under `mmcl train --allow-pipe`."""

    weight: Positive | None = None
    """Share of the samples drawn from this source, relative to the others'. Without weights every row of every source
    comes once an epoch."""
    samples: int | None = Field(default=None, ge=1)
    """Samples that count as one epoch of this source; all its rows if absent. Tar shards that cannot be counted (a URL,
    a pipe) need it."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Role to the name of a prompt, in this source, where it differs from `data.prompts`."""


class MiningConfig(Section):
    """Hard negatives from the model's own index, mined anew as it learns (ANCE, Xiong et al. 2021, arXiv:2007.00808).

    Every row gets the `count` items that its anchor (an image, for clip) is most similar to among all positives of the
    training rows (captions), as far as the rules below let them pass. What is the same thing as anything of the row, or
    belongs to an equal anchor, never does. A row with too few gets random ones besides. Needs tables: a stream has no
    row twice at hand."""

    start: int = Field(default=0, ge=0)
    """Optimizer steps before they are mined first; until then there are none. 0 suits a model that knows something
    already, such as a pretrained one."""
    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two minings; mined once if absent."""
    count: int = Field(default=1, ge=1)
    """Hard negatives of each row."""
    depth: int = Field(default=100, ge=1)
    """Nearest items to choose from."""
    skip: int = Field(default=0, ge=0)
    """Of these, leave out so many of the nearest, among which the false negatives are."""
    choice: Literal["top", "semi_hard", "random"] = "semi_hard"
    """`top`: the nearest. `semi_hard`: the nearest that are less similar than the positive (FaceNet, Schroff et al.
    2015, arXiv:1503.03832). `random`: drawn from the depth. The limits below hold for all of them."""
    margin: float | None = Field(default=None, ge=0.0)
    """Keep what is less similar than the positive by more than this cosine (NV-Retriever, Moreira et al. 2024,
    arXiv:2407.15831, TopK-MarginPos)."""
    relative_margin: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """The same as a share of the positive's cosine: 0.05 keeps what is below 95% of it (there, TopK-PercPos)."""
    max_score: float | None = Field(default=None, ge=-1.0, le=1.0)
    """Largest cosine of a negative."""
    guide: str | None = None
    """A model as `mmcl.load` takes it. What it finds closer to the anchor than the positive is no negative."""

    @model_validator(mode="after")
    def _depth_holds_the_count(self) -> MiningConfig:
        if self.depth < (needed := self.skip + self.count):
            skipped = f", of which {self.skip} are skipped," if self.skip else ""
            raise ValueError(
                f"depth: {self.depth} items{skipped} do not hold {self.count} negatives; raise it to {needed} or more"
            )
        return self


class ImageConfig(Section):
    """How an image becomes pixels."""

    size: int = Field(default=224, ge=8, le=2**14)
    """Side of the square that the image tower sees, in pixels."""
    resize: Literal["crop", "squash", "pad"] = "crop"
    """`crop`: shorter side to `size`, centre crop. `squash`: ignore the aspect ratio. `pad`: white borders."""
    exact_decoding: bool = False
    """Decode JPEG files much larger than `size` at their full size, rather than at a half, a quarter or an eighth of
    it. Slower; otherwise pixels differ a little, and vectors by up to 8e-3, from those of other libraries."""
    stored: Annotated[int, Field(ge=8, le=2**14)] | Literal["square"] | None = None
    """What random crops are cut out of: the image, its shorter side brought down to this many pixels if it is longer;
    1.5 × the largest view if absent, so that a crop of average area (0.5) is about as large as its view. More pixels
    make small crops sharper, and are more to decode and to store. `square`: the square of `size` that the tower sees in
    use, which takes the least disk, and beside which nothing of the image is seen."""
    root: str | None = None
    """The folder that paths of images in tables start from; if absent, that of the table."""


class DataConfig(Section):
    """The rows, their columns and what to do with bad ones."""

    train: TrainSourceConfig
    """Rows to learn from."""
    mix: list[TrainSourceConfig] = Field(default_factory=list)
    """More sources, mixed with `train`; with weights on all of them, or on none."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role to column name, for example `{image: path, text: caption}`. A role not named is its own column name.
    simcse: `text` alone, of which dropout makes the pairs; or `anchor`, `positive` and any number of hard negatives
    (`negative`, `negative_2`, ...), which a row may lack. scored_pairs: `anchor`, `positive` and `score`.
    siamese: `label`; or `anchor`, `positive` and `negative`; or `first`, `second` and `same`.
    clip: `label` besides, if named: all texts of a label are then positives of each of its images, and vice versa; and
    any number of hard negatives (`negative`, `negative_2`, ...), texts that are wrong for the image, if named.
    Over images alone: `image`, and any number of other columns of images of the same thing (`image_2`, `image_3`, ...),
    which are views of a row as the items of a list are; models are judged on `image`.
    A cell may be a list of texts or images, as long as it likes, see `explode`."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Role to the name of a prompt in `model.text.prompts` that is put before its texts, for example
    `{anchor: query, positive: passage}`."""
    batches: Literal["mixed", "one_source"] = "mixed"
    """Several sources: a batch has rows of all of them, or of one, whose negatives are then of its own kind, which
    mining, a queue and extra texts cannot keep."""
    distinct: bool = False
    """Keep rows that share a text or image out of the same batch, rather than masking them as negatives only."""
    explode: str | None = None
    """A role of images or texts whose cells are lists: each item becomes a row of its own, and those of a cell stand
    together in a batch. They have the same label, unless a column is named for it: under `clip` all of them are
    positives of all on the other side. Without it, of a list of texts one is drawn anew in every epoch, and of a list
    of images another one for every view of the row, as long as there are others."""
    per_label: Annotated[int, Field(ge=2)] | Literal["all"] | None = None
    """Rows of a label that stand together in a batch, at most, or all of them, for methods that read labels; if null
    rows of a label meet by chance. Each row still comes once an epoch. The edge of a batch may part them."""
    mining: MiningConfig | None = None
    """Hard negatives that the model finds for itself, for clip and for simcse on pairs; none if absent."""
    image: ImageConfig = Field(default_factory=ImageConfig)
    """How an image becomes pixels, in training and in use."""
    on_error: Literal["skip", "fail"] = "skip"
    """An unreadable image or a missing text: skip the row, count and list it, or stop the run."""
    cache_gb: float = Field(default=20.0, ge=0.0)
    """Largest cache of decoded pixels on disk, in GB; beyond it images are decoded again in every epoch."""
    workers: int = Field(default=0, ge=0)
    """Processes, for every device, that prepare batches; 0 is a thread beside the training loop. Without processes the
    decoded images of tables stay on a CUDA device if they take at most a quarter of its free memory."""
    prefetch: int = Field(default=2, ge=1)
    """Batches that each worker prepares ahead."""
    shuffle: int = Field(default=5000, ge=1)
    """Tar shards: samples that a worker shuffles at a time, block by block; whole shards are shuffled besides."""

    def numbered(self, role: str) -> list[str]:
        """``role``, and then ROLE_2, ROLE_3 and so on, of which columns of the training rows are named."""
        named = {*self.columns}.union(*(source.columns for source in (self.train, *self.mix)))
        more = [other for other in named if re.fullmatch(rf"{re.escape(role)}_([2-9]|[1-9][0-9]+)", other)]
        return [role, *sorted(more, key=lambda other: (len(other), other))]

    def column_of(self, role: str, source: SourceConfig) -> str:
        """What a role's column is called in a table."""
        return source.columns.get(role, self.columns.get(role, role))


class ImageChangesConfig(Section):
    """Random changes of a training image, in the order of these settings, drawn anew for every sample. The defaults
    change nothing."""

    crop_scale: Range = (1.0, 1.0)
    """Area of the random crop as a share of the image (Inception-style crop); (1, 1) is off."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Aspect ratio of the random crop."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    flip_vertical: Fraction = 0.0
    """Probability of a vertical flip."""
    rotate: float = Field(default=0.0, ge=0.0, le=180.0)
    """Largest rotation either way, in degrees."""
    brightness: float = Field(default=0.0, ge=0.0)
    """Brightness factor is drawn from [1 - b, 1 + b]. The order of brightness, contrast, saturation and hue is drawn
    too."""
    contrast: float = Field(default=0.0, ge=0.0)
    """Contrast factor is drawn from [1 - c, 1 + c]."""
    saturation: float = Field(default=0.0, ge=0.0)
    """Saturation factor is drawn from [1 - s, 1 + s]."""
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    """Largest hue shift either way, as a share of the colour circle."""
    jitter_prob: Fraction = 1.0
    """Probability that brightness, contrast, saturation and hue change at all."""
    greyscale: Fraction = 0.0
    """Probability that colour is dropped."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: Range = (0.1, 2.0)
    """Standard deviation of the blur, in pixels."""
    solarise: Fraction = 0.0
    """Probability that all levels from a half on are inverted."""
    fill: Fraction = 1.0
    """Grey level of what lies outside the image; 1 is white."""

    @property
    def crops(self) -> bool:
        """Whether images are cropped at random."""
        return self.crop_scale != (1.0, 1.0)

    @property
    def changes(self) -> bool:
        """Whether anything is changed at random: `blur_sigma` alone, for one, does nothing."""
        jitters = self.jitter_prob > 0 and any((self.brightness, self.contrast, self.saturation, self.hue))
        others = (self.flip, self.flip_vertical, self.rotate, self.greyscale, self.blur, self.solarise)
        return self.crops or jitters or any(others)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise ValueError(f"{name}: two positive ends in ascending order, not ({low}, {high})")
        if self.crop_scale[1] > 1.0:
            raise ValueError("crop_scale: a crop cannot exceed the image, so its upper end is at most 1")
        return self


class AugmentationConfig(ImageChangesConfig):
    """Random changes of training images."""

    size: Annotated[int, Field(ge=8, le=2**14)] | None = None
    """Side in pixels of the changed images, that of the tower if absent. Smaller ones cost less. Things are larger in a
    random crop than in the whole image that is seen in use: a tower that learned from smaller crops, such as three
    quarters of the size, sees them there in the size that it knows (FixRes, Touvron et al. 2019, arXiv:1906.06423)."""
    second: ImageChangesConfig | None = None
    """Of the second view of an image, where it is changed in another way, as by BYOL and Barlow Twins: what is not set
    there is as above. For example `{blur: 0.1, solarise: 0.2}`."""

    @property
    def kinds(self) -> list[ImageChangesConfig]:
        """All that there are."""
        return [self] if self.second is None else [self, self.second]

    @property
    def changes(self) -> bool:
        """Whether anything is changed at random, in the one view or in the other."""
        return super().changes or (self.second is not None and self.second.changes)

    def of_draw(self, number: int) -> ImageChangesConfig:
        """What changes the view of this number, from 0."""
        return self.kinds[-1] if number == 1 else self

    @model_validator(mode="after")
    def _fill_is_one(self) -> Self:
        if self.second is not None and self.second.fill != self.fill:
            raise ValueError("second.fill: what lies outside the image has one level in both views; set fill")
        return self

    @model_validator(mode="before")
    @classmethod
    def _second_differs_in_what_is_set(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("second"), dict):
            first = {name: value for name, value in values.items() if name in ImageChangesConfig.model_fields}
            return values | {"second": first | values["second"]}
        return values


class TextAugmentationConfig(Section):
    """Random changes of a training text, drawn anew for every sample. The defaults change nothing.

    simcse on `text` alone changes both views of a sentence, each in its own way."""

    drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a token is left out; the special ones and at least one other stay."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Smallest share of the tokens that stays when a caption is cut to a random run of its tokens; 1 is off."""
    swap: Fraction = 0.0
    """Probability that a word is replaced by one of its synonyms."""
    synonyms: str | None = None
    """A text file of synonyms, which `swap` needs: on each line words that may stand for each other, separated by
    tabs."""

    @model_validator(mode="after")
    def _swap_has_synonyms(self) -> TextAugmentationConfig:
        if (self.swap > 0.0) != (self.synonyms is not None):
            raise ValueError("swap and synonyms go together: a probability, and the file to take the words from")
        return self
