"""The resolved dvc.yaml as ordered stages. There is no other description of the DAG."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from components.errors import IntaglioError, TransientError
from flows.settings import stage_environment

# The stages that compute on the accelerator, or on all cores where there is none.
DEVICE_STAGES = frozenset({"backbone", "finetune", "signature", "record", "update", "evaluate"})

BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")  # DVC's message beside another DVC
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml with its variables filled in; `upstream` are the stages whose outputs it reads."""

    name: str
    upstream: frozenset[str]

    @property
    def needs_device(self) -> bool:
        """Whether only one such stage may run at a time."""
        return self.name.partition("@")[0] in DEVICE_STAGES


@dataclass(frozen=True)
class Dag:
    """All stages, in an order in which they can run."""

    stages: tuple[Stage, ...]

    @cached_property
    def _descendants(self) -> Mapping[str, frozenset[str]]:
        found: dict[str, set[str]] = {stage.name: set() for stage in self.stages}
        for stage in reversed(self.stages):
            for name in stage.upstream:
                found[name] |= {stage.name} | found[stage.name]
        return {name: frozenset(below) for name, below in found.items()}

    def downstream(self, names: Iterable[str]) -> frozenset[str]:
        """Return every stage that reads, directly or not, what the named stages write."""
        return frozenset().union(*(self._descendants[name] for name in names))

    def by_urgency(self) -> tuple[Stage, ...]:
        """Order the stages by how many others wait for them, so that the chain of tasks starts early."""
        return tuple(sorted(self.stages, key=lambda stage: -len(self._descendants[stage.name])))


def read_dag(root: Path) -> Dag:
    """Resolve dvc.yaml with DVC itself (templates, `foreach`, overlapping outputs).

    Raises:
        IntaglioError: DVC rejects dvc.yaml or params.yaml.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            graph = repo.index.graph
            # A .dvc file, such as that of an archived task, has no command: it is there, or `dvc pull` brings it.
            upstream = {str(stage.name): _names(graph.successors(stage)) for stage in graph if stage.cmd}
    except DvcException as error:
        cause = error.__cause__ or error
        raise IntaglioError(f"{root / 'dvc.yaml'}: {' '.join(f'{error}: {cause}'.split())}") from None
    order = TopologicalSorter(upstream).static_order()
    return Dag(tuple(Stage(name, upstream[name]) for name in order))


def _names(stages: Iterable[Any]) -> frozenset[str]:
    return frozenset(str(stage.name) for stage in stages if stage.cmd)


@dataclass(frozen=True)
class StageStatus:
    """What `dvc status` says of one stage.

    Attributes:
        deps: path of each changed dependency -> modified, deleted or new.
        params: sections of params.yaml that changed.
        outs: path of each changed output -> modified or deleted.
        command: whether the command changed, or the stage always runs.
    """

    deps: Mapping[str, str]
    params: tuple[str, ...]
    outs: Mapping[str, str]
    command: bool

    @classmethod
    def of(cls, entries: Iterable[Any]) -> StageStatus:
        """Read the entries of `dvc status --json` about one stage."""
        deps: dict[str, Any] = {}
        outs: dict[str, str] = {}
        command = False
        for entry in entries:
            if isinstance(entry, Mapping):
                deps |= entry.get("changed deps", {})
                outs |= entry.get("changed outs", {})
            else:
                command = True
        sections = tuple(name for value in deps.values() if isinstance(value, Mapping) for name in value)
        files = {path: value for path, value in deps.items() if isinstance(value, str) and path != "params.yaml"}
        return cls(files, sections, outs, command)

    @property
    def inputs_changed(self) -> bool:
        """Whether more than outputs changed."""
        return bool(self.deps or self.params or self.command)


def stage_status(root: Path, patience: float = PATIENCE_SECONDS) -> dict[str, StageStatus]:
    """Return the stages that `dvc repro` would look at: dependencies, parameters, command or outputs changed.

    Args:
        root: the project's folder.
        patience: seconds in which `dvc status` is repeated while another DVC process writes a stage's files.

    Raises:
        TransientError: another DVC process was at work all the time.
        IntaglioError: `dvc status` failed.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json"]
    env, deadline, shown = stage_environment(root), time.monotonic() + patience, False
    while True:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return {name: StageStatus.of(entries) for name, entries in json.loads(done.stdout).items()}
        if not BUSY.search(done.stderr):
            raise IntaglioError(f"dvc status failed: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
        if time.monotonic() > deadline:
            raise TransientError(
                f"{root}: another DVC process (`dvc repro`?) is at work here; run again when it has ended"
            )
        if not shown:
            print("waiting for another DVC process in this project ...", flush=True)
        shown = True
        time.sleep(_POLL_SECONDS)
