"""A stream of tasks, as declared in YAML: which sets of images, split and restyled how (docs/laboratory.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.config import TASK_NAME, Positive
from components.errors import IntaglioError

Style = Literal["plain", "negative", "edges", "grey"]


class TaskSpec(BaseModel):
    """One task, or `parts` tasks of equally many classes of one source.

    Attributes:
        source: name of a zip or a folder in the data folders.
        folder: where in the source the images lie.
        parts: number of tasks into which the classes are split.
        half: use one half of the images only, so that two styles of one source share no image.
        style: how the images are changed.
        group: regular expression of a file's stem; its first group names what may not stand in both training and
            validation, such as a writer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str
    folder: str = ""
    parts: Positive = 1
    half: Literal[1, 2] | None = None
    style: Style = "plain"
    group: str | None = None


class StreamSpec(BaseModel):
    """A declared stream; `train_images` of each source at most, validation included, all test images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    description: str
    train_images: Positive
    tasks: Annotated[dict[Annotated[str, Field(pattern=TASK_NAME)], TaskSpec], Field(min_length=1)]


@dataclass(frozen=True)
class DeclaredStream:
    """A stream's name and what is declared."""

    name: str
    spec: StreamSpec


def known_streams() -> tuple[str, ...]:
    """Return the names of the streams that come with Intaglio."""
    return tuple(sorted(Path(str(file)).stem for file in _shipped().iterdir() if str(file).endswith(".yaml")))


def load_stream(name: str) -> DeclaredStream:
    """Load a stream by its name, or by the path of a YAML file.

    Raises:
        IntaglioError: unknown, not YAML, an unknown key, or a pattern that is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise IntaglioError(f"{path}: file not found; expected a stream's YAML file")
        return DeclaredStream(path.stem, _parse(path.read_text(), str(path)))
    if name not in known_streams():
        raise IntaglioError(f"stream {name!r}: unknown; known: {', '.join(known_streams())}, or a path to a YAML file")
    return DeclaredStream(name, _parse(_shipped().joinpath(f"{name}.yaml").read_text(), name))


def _shipped() -> Any:
    return files("components.lab") / "streams"


def _parse(text: str, where: str) -> StreamSpec:
    try:
        raw = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise IntaglioError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, Mapping):
        raise IntaglioError(f"{where}: expected description, train_images and tasks, got {type(raw).__name__}")
    try:
        spec = StreamSpec.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise IntaglioError(f"{where}: {key}: {problem['msg'].lower()}; see docs/laboratory.md") from None
    for task, settings in spec.tasks.items():
        _check_group(f"{where}: tasks.{task}.group", settings.group)
    return spec


def _check_group(where: str, pattern: str | None) -> None:
    try:
        groups = re.compile(pattern).groups if pattern is not None else 1
    except re.error as error:
        raise IntaglioError(f"{where}: not a regular expression: {error}") from None
    if groups < 1:
        raise IntaglioError(f"{where}: {pattern!r} has no group in parentheses that names what belongs together")
