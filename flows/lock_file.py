"""dvc.lock: what was run, with which inputs and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.errors import IntaglioError


@dataclass(frozen=True)
class LockFile:
    """The stages of dvc.lock, by name."""

    stages: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, root: Path) -> LockFile:
        """Read a project's dvc.lock; without one nothing was run yet.

        Raises:
            IntaglioError: the file is torn.
        """
        path = root / "dvc.lock"
        try:
            document = YAML(typ="safe", pure=False).load(path.read_text())
        except FileNotFoundError:
            return cls({})
        except YAMLError as error:
            raise IntaglioError(
                f"{path}: not valid YAML ({' '.join(str(error).split())}); `intaglio run` repairs it"
            ) from None
        return cls((document or {}).get("stages") or {})

    def has_learned(self, task: str) -> bool:
        """Return whether a task was trained."""
        return f"finetune@{task}" in self.stages

    def outs(self, stage: str) -> dict[str, Mapping[str, Any]]:
        """Return the outputs of a stage as they were recorded, by path."""
        return {out["path"]: out for out in self.stages.get(stage, {}).get("outs", [])}

    def params(self, stage: str) -> dict[str, Any]:
        """Return the settings that a stage was run with, by dotted name."""
        recorded = self.stages.get(stage, {}).get("params", {}).get("params.yaml", {})
        return dict(flat(recorded))


def flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested mappings as pairs of dotted name and value."""
    if not isinstance(tree, Mapping):
        return [(prefix, list(tree) if isinstance(tree, tuple) else tree)]
    return [pair for key, value in tree.items() for pair in flat(value, f"{prefix}.{key}" if prefix else str(key))]


def in_cache(root: Path, md5: str) -> bool:
    """Return whether DVC's cache has what a hash of dvc.lock names; "" names nothing."""
    return bool(md5) and (root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).exists()
