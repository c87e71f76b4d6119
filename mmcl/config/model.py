"""The towers and the space they share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from mmcl.config.section import Fraction, Positive, Section

MOST_LAYERS, WIDEST = 4096, 2**20
"""Beyond these a network is built for ever, or takes all memory, before anything could be said."""


class HeadConfig(Section):
    """What maps a tower's features to the shared space."""

    kind: Literal["linear", "mlp", "tanh", "none"] = "linear"
    """`linear`, `mlp` (one hidden layer with GELU), `tanh` (a dense layer with bias and tanh, as BERT's pooler and
    SimCSE's MLP), or `none` where the tower's width already is `model.dim`."""
    hidden: int | None = Field(default=None, ge=1, le=WIDEST)
    """Width of the hidden layer of `mlp`; the tower's own width if absent."""
    dropout: Fraction = 0.0
    """Dropout on the features before the head, in training."""


class LoraConfig(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685), merged when the model is written.
    Needs the extra `mmcl[lora]`."""

    rank: int = Field(default=8, ge=1, le=WIDEST)
    """Rank of the update of each matrix."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' input."""
    targets: list[str] | None = None
    """Last parts of the names of the layers of the blocks to adapt, such as `[q_proj, v_proj]` or, for open_clip's
    attention as a whole, `[attn]`; all linear ones if absent."""


class TowerConfig(Section):
    """What every tower has."""

    frozen: bool = False
    """Keep the weights as they are. Without augmentation a frozen tower runs once and its features are cached."""
    freeze_blocks: int = Field(default=0, ge=0)
    """Keep the layers before the first block, and the first so many blocks, as they are."""
    lora: LoraConfig | None = None
    """Learn low-rank adapters instead of the weights."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    head: HeadConfig = Field(default_factory=HeadConfig)
    """What maps the features to the shared space."""


class ImageTowerConfig(TowerConfig):
    """The tower that embeds images."""

    name: str = "timm:resnet18"
    """`timm:NAME` for any timm model, `cifar:resnet18` (10, 18, 34, 50, 101) for a ResNet with a 3×3 stem and without
    max-pooling, for images of about 32 pixels, `open_clip:NAME` for the visual tower of any open_clip model,
    `transformers:NAME` (a hub name or folder) for any vision model of transformers: ViT, DINOv2, SigLIP, ..."""
    pretrained: str | bool = False
    """timm and transformers: whether to load the pretrained weights. timm and `cifar:` also take a file with a state
    dict of timm's or torchvision's, or a folder of `mmcl export`. open_clip: their tag, such as `laion2b_s34b_b79k`,
    or a checkpoint file."""
    args: dict[str, Any] = Field(default_factory=dict)
    """More arguments of timm's `create_model`; of open_clip, settings of its `vision_cfg`; of `cifar:`, those of timm's
    `ResNet` and `width`, the channels of the first stage, 64 by default."""
    patch_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the patches that a vision transformer does not see in training (FLIP, arXiv:2212.00794)."""


class TokenizerConfig(Section):
    """A SentencePiece unigram tokenizer trained on the run's own captions."""

    vocab_size: int = Field(default=8000, ge=16, le=2**24)
    """Largest number of pieces; small corpora give fewer."""
    lowercase: bool = True
    """Fold case before splitting."""
    character_coverage: float = Field(default=0.9995, gt=0.0, le=1.0)
    """Share of characters the pieces must cover; 0.9995 suits languages with many characters, 1.0 small alphabets."""
    words: int | None = Field(default=None, ge=1, le=2**24)
    """So many of the most frequent words are tokens of their own, whole; the pieces are of all other words. For
    languages that put blanks between words. All words are cut into pieces if absent."""
    name: str | None = None
    """Take this tokenizer instead of training one: a folder of `mmcl tokenizer train`, or any of transformers'."""


Pooling = Annotated[
    Literal["mean", "weighted_mean", "max", "cls", "pooler", "last", "first_last", "last_two"],
    BeforeValidator(lambda name: "cls" if name == "cls_before_pooler" else name),
]


class TextTowerConfig(TowerConfig):
    """The tower that embeds texts."""

    name: str = "scratch"
    """A transformers or sentence-transformers name or folder, `sample:minilm`, `open_clip:NAME` for the text tower of
    any open_clip model, `scratch`: a small new one, `bag:ngrams`: a new sum of token vectors, of character n-grams and
    learned ones, best of whole words (`tokenizer.words`), `bag:mean`: the mean of learned token vectors, a static
    embedding, or `KEY:NAME` of another package."""
    pretrained: str | bool = True
    """transformers: whether to load the weights. open_clip: their tag or a checkpoint file; `true` starts anew, since
    no tag is named. Ignored for `scratch`."""
    pooling: Pooling | None = None
    """How token states become one vector; as the model's own folder says, else `mean`. `mean`, `weighted_mean` (later
    tokens count more) and `max` over the tokens; `cls` (the first token's state; SimCSE's `cls_before_pooler` is the
    same); `pooler` (the first token's state through the model's own dense layer and tanh, which SimCSE calls `cls`);
    `last` (the last token's); `first_last` and `last_two`: mean over the tokens of two layers' states."""
    prompts: dict[str, str] | None = None
    """Name to the words put before a text, such as `{query: "query: "}`; kept in the model folder, for
    `encode(prompt="query")`. The model's own if absent."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a tower of another package, and of `bag:ngrams` (`learned`: dimensions that are learned, `share` of
    the cosine that these are, `smoothing` both a of a / (a + p), `numbers`: how many times a token of digits counts,
    `ngrams`: shortest and longest); others have none."""
    max_tokens: int | None = Field(default=None, ge=2, le=2**24)
    """Longer texts are cut here; the model's own limit if absent (64 for `scratch` and towers of other packages,
    none for `bag:mean`)."""
    token_weights: Positive | None = None
    """`scratch` with pooling `mean`: every token has a weight of its own in the mean, which is learned from
    a / (a + p) on, p being the token's frequency in the tokenizer's training and a this number, such as 0.002 (SIF,
    Arora et al. 2017). All count alike if absent."""
    layers: int = Field(default=4, ge=1, le=MOST_LAYERS)
    """`scratch`: number of transformer layers."""
    width: int = Field(default=256, ge=8, le=WIDEST)
    """`scratch`: width of the transformer; `bag:ngrams` and `bag:mean`: number of features."""
    heads: int = Field(default=4, ge=1, le=WIDEST)
    """`scratch`: number of attention heads; divides `width`."""
    dropout: Fraction = 0.1
    """`scratch`: dropout within the transformer."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """`scratch`, `bag:ngrams`, `bag:mean`, and towers of other packages: how the tokenizer is trained."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextTowerConfig:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} attention heads do not divide the width {self.width}")
        return self

    @model_validator(mode="after")
    def _weighted_tokens_are_averaged(self) -> TextTowerConfig:
        if self.token_weights is not None and (self.name != "scratch" or self.pooling not in (None, "mean")):
            raise ValueError("token_weights: only a tower from scratch with pooling mean has them; leave it out")
        return self


class CategoryFieldConfig(Section):
    """A column of values of which there are many alike: an id, an occupation, genres. A cell may be a list of them; its
    vector is the sum of theirs over the root of their number. Values that are not known count as missing."""

    kind: Literal["category"] = "category"
    """What the column holds."""
    width: int = Field(default=64, ge=1, le=WIDEST)
    """Dimensions of a value's vector."""
    buckets: int | None = Field(default=None, ge=1, le=2**31)
    """Hash values into so many buckets, rather than give each value of the training rows a vector of its own: new
    values then have one as well, which they share with others."""
    min_count: int = Field(default=1, ge=1)
    """Training rows that a value stands in to be known; of those hashed all are."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between the values of a cell of text, such as `|`; a text is one value if absent."""
    without: str | None = None
    """Another column whose values are left out of a row's own: of a user's history the item that the row is about."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the values that training leaves out at random: of an id, so that the other fields learn to do without it
    (Volkovs et al. 2017); of a history, so that it is not learned by heart."""

    @model_validator(mode="after")
    def _buckets_count_nothing(self) -> CategoryFieldConfig:
        if self.buckets is not None and self.min_count > 1:
            raise ValueError("min_count: values that are hashed are not counted; leave out min_count or buckets")
        return self


class NumberFieldConfig(Section):
    """A column of numbers, standardised by the mean and deviation of the training rows, and whether there is one."""

    kind: Literal["number"] = "number"
    """What the column holds."""


class TextFieldConfig(TextTowerConfig):
    """A column of texts, through a text tower, whose `head` counts for nothing."""

    kind: Literal["text"] = "text"
    """What the column holds."""


class ImageFieldConfig(ImageTowerConfig):
    """A column of images, through an image tower, whose `head` counts for nothing."""

    kind: Literal["image"] = "image"
    """What the column holds."""


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


FieldConfig = Annotated[
    Annotated[
        Annotated[CategoryFieldConfig, Tag("category")]
        | Annotated[NumberFieldConfig, Tag("number")]
        | Annotated[TextFieldConfig, Tag("text")]
        | Annotated[ImageFieldConfig, Tag("image")],
        Discriminator(
            _kind,
            custom_error_type="kind",
            custom_error_message="a kind is asked for (category, number, text or image), or settings with one",
        ),
    ],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


class TableTowerConfig(TowerConfig):
    """A tower that embeds a group of columns: what its fields give, side by side, through the head."""

    fields: dict[str, FieldConfig] = Field(default_factory=dict)
    """Column to what it holds: `category`, `number`, `text` or `image`, or settings with that as their `kind`."""
    head: HeadConfig = Field(default_factory=lambda: HeadConfig(kind="mlp"))
    """What maps the fields to the shared space."""

    @model_validator(mode="after")
    def _has_no_blocks(self) -> TableTowerConfig:
        for key in ("freeze_blocks", "lora", "checkpointing"):
            if getattr(self, key):
                raise ValueError(f"{key}: a table has no blocks; set it in a field of texts or images, or leave it out")
        return self


class NamedTextTowerConfig(TextTowerConfig):
    """A text tower under a name of its own."""

    modality: Literal["text"]
    """What it embeds."""


class NamedImageTowerConfig(ImageTowerConfig):
    """An image tower under a name of its own."""

    modality: Literal["image"]
    """What it embeds."""


class NamedTableTowerConfig(TableTowerConfig):
    """A tower of a group of columns under a name of its own."""

    modality: Literal["table"]
    """What it embeds."""


def _modality(value: Any) -> Any:
    return value.get("modality") if isinstance(value, dict) else getattr(value, "modality", None)


NamedTowerConfig = Annotated[
    Annotated[NamedTextTowerConfig, Tag("text")]
    | Annotated[NamedImageTowerConfig, Tag("image")]
    | Annotated[NamedTableTowerConfig, Tag("table")],
    Discriminator(
        _modality,
        custom_error_type="modality",
        custom_error_message="settings with modality: text, image or table are asked for",
    ),
]


class ModelConfig(Section):
    """The towers and the space they share."""

    name: str | None = None
    """A whole model to start from, as `mmcl.load` takes it: `ViT-B-32/laion2b_s34b_b79k`, `hf-hub:...`, a folder or a
    run. The sections below then say what to freeze, adapt or change. A tower of `towers` starts from the model's of
    that name, else from its only one of that modality: two towers of texts may start alike."""
    dim: int = Field(default=256, ge=2, le=WIDEST)
    """Dimension of the embeddings; that of the model where `name` names one."""
    image: ImageTowerConfig | None = None
    """The image tower, where the method has one."""
    text: TextTowerConfig | None = None
    """The text tower, where the method has one."""
    towers: dict[str, NamedTowerConfig] = Field(default_factory=dict)
    """Name to a tower of any modality, in the place of `image` and `text`: `{question: {modality: text, …}, answer:
    {modality: text, …}}`. The names are the roles of the columns that pass through them (clip, siglip, two_tower)."""

    @model_validator(mode="after")
    def _towers_are_named_once(self) -> ModelConfig:
        beside = [name for name in ("image", "text") if getattr(self, name) is not None]
        if self.towers and beside:
            raise ValueError(f"towers: they stand in the place of {beside[0]}; leave one of the two out")
        return self

    def where(self, name: str) -> str:
        """The setting that the section of the tower called ``name`` is."""
        return f"model.towers.{name}" if name in self.towers else f"model.{name}"

    def tower(self, name: str) -> TowerConfig | None:
        """The section of the tower called ``name``."""
        return self.towers.get(name) or {"image": self.image, "text": self.text}.get(name)
