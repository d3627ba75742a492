"""Why a stage would run, in words: which images, settings or files changed since it last did."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.config import Config
from components.data.folder_changes import folder_changes
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from flows.lock_file import LockFile, flat
from flows.planning.dag import StageStatus

_NAMED = 3  # settings in a line
_NONE = object()


def reason_of(root: Path, config: Config, lock: LockFile, stage: str, status: StageStatus) -> str:
    """Say in words why DVC calls a stage changed.

    Args:
        root: the project's folder.
        config: its params.yaml.
        lock: its dvc.lock.
        stage: its name.
        status: what DVC says of it.
    """
    if stage not in lock.stages:
        return "has not run yet"
    kind, _, name = stage.partition("@")
    parts = []
    if kind in ("ingest", "update") and status.deps:
        folder = config.task(name).folder if kind == "ingest" else config.updates[name].folder
        parts += _folder_words(root, folder, name, status) if folder in status.deps else []
        parts += [f"{path} {how}" for path, how in status.deps.items() if path != folder]
    else:
        parts += [f"{path} {how}" for path, how in status.deps.items()]
    if status.params:
        parts.append(changed_settings(root, lock, stage, status.params))
    if status.command:
        parts.append("a new revision of the stage")
    parts += [f"{path} {how}" for path, how in status.outs.items() if not parts]
    return ", ".join(parts) or "changed"


def _folder_words(root: Path, folder: str, name: str, status: StageStatus) -> list[str]:
    if not (root / folder).is_dir():
        return [f"{folder} is gone"]
    try:
        lines = folder_changes(root / folder, read_manifest(root, name)).lines
    except IntaglioError as error:  # the folder breaks a rule now, or its manifest is missing
        return [f"{folder}: {error}"]
    return lines or [f"{folder}: {status.deps[folder]}, but no image of it"]


def changed_settings(root: Path, lock: LockFile, stage: str, sections: Collection[str]) -> str:
    """Name the settings that differ from those of the last run, with both values; of the stream, its tasks.

    Args:
        root: the project's folder.
        lock: its dvc.lock.
        stage: its name.
        sections: of params.yaml that DVC calls changed.
    """
    before, now = lock.params(stage), dict(flat(YAML(typ="safe").load((root / "params.yaml").read_text())))
    inside = [name for name in (*now, *before) if any(name == own or name.startswith(f"{own}.") for own in sections)]
    words = dict.fromkeys(
        _setting_words(name, before, now) for name in inside if before.get(name, _NONE) != now.get(name, _NONE)
    )
    named = [*words][:_NAMED]
    return ", ".join(named) + (f" and {len(words) - _NAMED} more" if len(words) > _NAMED else "") or "settings"


def _setting_words(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    section, _, rest = name.partition(".")
    if section == "stream" and rest.count("."):
        name = ".".join(name.split(".")[:3])  # an entry of the stream, not each of its keys
        known = [any(one == name or one.startswith(f"{name}.") for one in values) for values in (before, now)]
        return f"{name} {'changed' if all(known) else 'is new' if known[1] else 'is gone'}"
    if name not in before:
        return f"{name} is new"
    return f"{name} from {before[name]} to {now[name]}" if name in now else f"{name} is gone"
