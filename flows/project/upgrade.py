"""`intaglio init --upgrade`: a project's dvc.yaml becomes that of the installed version. Nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.errors import IntaglioError
from components.io import write_text
from components.params import load_config
from flows.pipeline.lock import run_lock
from flows.project.template_files import DVC_YAML, PARAMS, template_text
from flows.settings import SCRATCH

KEPT = f"{SCRATCH}/dvc.yaml.before-upgrade"


def upgrade_project(root: Path) -> list[str]:
    """Rewrite a project's dvc.yaml and return what changed, line by line. The former file is kept.

    Raises:
        IntaglioError: the pipeline is running, or the file cannot be written.
    """
    path, new = root / DVC_YAML, template_text(DVC_YAML)
    with run_lock(root):
        old = path.read_text()
        if old == new:
            return [f"{path}: is that of the installed version already", *_complaints(root)]
        write_text(root / KEPT, old)
        write_text(path, new)
    return [
        f"{path}: now that of the installed version; the former one is {KEPT}",
        *_differences(_read(old), _read(new)),
        *_complaints(root),
        "next: `intaglio plan` shows what would run, and why",
    ]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = old.get("stages") or {}, new.get("stages") or {}
    others = [key for key in {**old, **new} if key != "stages"]
    groups = {
        "stages added": [name for name in after if name not in before],
        "stages removed": [name for name in before if name not in after],
        "stages changed": _changed(before, after, [name for name in after if name in before]),
        "other parts changed": _changed(old, new, others),
    }
    found = [f"  {group}: {', '.join(names)}" for group, names in groups.items() if names]
    return found or ["  only comments or layout changed"]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if before.get(name) != after.get(name)]


def _complaints(root: Path) -> list[str]:
    """Return what the installed version finds wrong in params.yaml, which a person has to change."""
    try:
        load_config(root / PARAMS, empty=True)
    except IntaglioError as error:
        return [f"to do: {line}" for line in str(error).splitlines()]
    return []


def _read(text: str) -> Mapping[str, Any]:
    try:
        document = YAML(typ="safe").load(text)
    except YAMLError:  # it is replaced all the same
        return {}
    return document if isinstance(document, Mapping) else {}
