"""params.yaml, read into the typed configuration; every mistake in it is named with its place and its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from components.config import BASE, UNKNOWN, Backbone, Config, Task
from components.errors import IntaglioError


def load_config(path: Path = Path("params.yaml"), *, empty: bool = False) -> Config:
    """Read and check params.yaml.

    Args:
        path: the file.
        empty: whether a stream without any task is fine too, as a new project has it.

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
    problems = list(_contradictions(config, empty))
    if problems:
        raise IntaglioError("\n".join(f"{path}: {line}" for line in problems))
    return config


def with_settings(config: Config, settings: Iterable[str]) -> Config:
    """Return the configuration with some values changed, each given as section.key=value.

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


def _contradictions(config: Config, empty: bool) -> Iterator[str]:
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
        yield f"embedding.shared: missing key; expected {BASE!r} or the first task, {_first(config)!r}"
    elif config.chain and config.embedding.shared not in (BASE, _first(config)):
        yield (
            f"embedding.shared is {config.embedding.shared!r}: expected {BASE!r} or the first task, "
            f"{_first(config)!r}: what earlier tasks left could not be seen anew under a later one's module"
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
    yield from _no_task(config, empty)


def _no_task(config: Config, empty: bool) -> Iterator[str]:
    if config.stream.tasks or config.stream.archived:
        if not config.tasks:
            yield "stream.tasks: no task is left to retrieve; add one, or restore a retired one"
    elif not empty:
        yield "stream.tasks: there is no task yet; `intaglio task add NAME FOLDER` adds a folder of images"


def _first(config: Config) -> str:
    """Return the first task; BASE, which is always allowed, where the chain is broken."""
    return config.chain[0] if config.chain else BASE


def _known_weights(backbone: Backbone) -> bool:
    if backbone.weights == "hub" or backbone.weights.endswith(".safetensors"):
        return True
    return "==" in backbone.weights and backbone.sha256 is not None


def _broken_chain(config: Config) -> Iterator[str]:
    every, folders = config.stream.tasks | config.stream.archived, dict[str, str]()
    for name in config.stream.tasks.keys() & config.stream.archived.keys():
        yield f"stream.archived.{name}: is among stream.tasks too; remove one of the two"
    for name, task in every.items():
        if name == BASE:
            yield f"stream.tasks.{name}: this name stands for the frozen backbone; choose another"
        if name == UNKNOWN:
            yield f"stream.tasks.{name}: this is the answer for images of no task; choose another name"
        if task.previous not in (BASE, *every) or task.previous == name:
            yield f"stream.tasks.{name}.previous is {task.previous!r}: expected another task, or {BASE!r}"
        other = folders.get(task.folder)
        if other is not None and other not in config.replaced_by(name) and name not in config.replaced_by(other):
            yield f"stream.tasks.{name}.folder is already the folder of task {other!r}"
        if task.replaces is not None and task.replaces not in config.chain[: _place(config, name)]:
            yield f"stream.tasks.{name}.replaces is {task.replaces!r}: expected an earlier task"
        folders[task.folder] = name
    yield from _forks(every)
    yield from _broken_updates(config, folders)


def _place(config: Config, name: str) -> int:
    return config.chain.index(name) if name in config.chain else 0


def _forks(every: Mapping[str, Task]) -> Iterator[str]:
    """Name the tasks that follow the same one, as two branches leave them, and those that no chain reaches."""
    followers: dict[str, list[str]] = {}
    for name, task in every.items():
        followers.setdefault(task.previous, []).append(name)
    forked = {previous: names for previous, names in followers.items() if len(names) > 1}
    for previous, names in forked.items():
        end, seen = names[0], set[str]()
        while end in followers and end not in seen:
            seen.add(end)
            end = followers[end][0]
        yield (
            f"stream.tasks: {' and '.join(names)} both follow {previous!r}; write `previous: {end}` for {names[1]}, "
            f"or run `intaglio task order {' '.join(names)}`"
        )
    reached, last = set[str](), BASE
    while not forked and last in followers and last not in reached:
        reached.add(last)
        last = followers[last][0]
    if not forked and (lost := sorted(every.keys() - reached - {last})):
        yield f"stream.tasks: {', '.join(lost)}: no chain of `previous` leads there from {BASE!r}"


def _broken_updates(config: Config, folders: dict[str, str]) -> Iterator[str]:
    followed = set[str]()
    for name, update in config.updates.items():
        where, known = f"stream.updates.{name}", (update.task, *config.updates)
        if update.task not in config.chain:
            yield f"{where}.task is {update.task!r}, which is no task"
        elif name.rpartition(".")[0] != update.task:
            yield f"{where}: the name of an update begins with its task's, as {update.task}.1"
        if update.previous not in known or update.previous in followed or update.previous == name:
            yield f"{where}.previous is {update.previous!r}: expected {update.task!r}, or the update before this one"
        if update.folder in folders:
            yield f"{where}.folder is already the folder of {folders[update.folder]!r}"
        folders[update.folder] = name
        followed.add(update.previous)


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
