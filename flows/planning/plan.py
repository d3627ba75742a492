"""What a run would do, why, and about how long: made before anything starts, and followed by the run.

A task that was learned stays as it was learned. Where its images or the settings of its training changed, the stages
that would train it again are kept back, and the plan says so; `--retrain NAME` is the word that lets them run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from components.config import Config
from components.errors import IntaglioError
from flows.durations import duration
from flows.lock_file import LockFile, in_cache
from flows.planning.dag import Dag, StageStatus, read_dag, stage_status
from flows.planning.reasons import changed_settings, reason_of
from flows.planning.timings import expected_seconds
from flows.tasks.dvc_files import learned_tasks, left_by

LEARNING = ("ingest", "validate", "finetune")  # the stages that make a task what was learned
_NAMED = 3  # files in a line
OF_IMAGES = ("signature", "record")  # stages of a task that read its images, and train nothing


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        root: the project's folder.
        dag: all stages.
        to_run: the stages to look at, with all that is downstream of them, without those kept back.
        reasons: why, for each stage that DVC calls changed.
        kept_back: learned task -> why its stages do not run again.
    """

    root: Path
    dag: Dag
    to_run: frozenset[str]
    reasons: Mapping[str, str]
    kept_back: Mapping[str, str]

    @property
    def lines(self) -> list[str]:
        """Return the plan in words, a line each."""
        return [*self._lines()]

    def _lines(self) -> Iterator[str]:
        for task, reason in self.kept_back.items():
            yield f"{task} stays as it was learned: {reason}"
        if not self.to_run:
            yield "nothing to run: every stage is up to date"
            return
        ordered = [stage.name for stage in self.dag.stages if stage.name in self.to_run]
        for name in ordered:
            yield f"{name}: {self.reasons.get(name, 'after a stage before it')}"
        seconds, unknown = expected_seconds(self.root, ordered)
        how_long = f"about {duration(seconds)}" if seconds else "how long is not known yet"
        if unknown and seconds:
            how_long += f" and the first {', '.join(unknown)}"
        yield f"{len(ordered)} of {len(self.dag.stages)} stages to run, {how_long}"


def make_plan(root: Path, config: Config, retrain: Collection[str] = ()) -> Plan:
    """Compare the project with dvc.lock.

    Args:
        root: the project's folder.
        config: its params.yaml.
        retrain: learned tasks that may be trained again.

    Raises:
        IntaglioError: a name in `retrain` is no learned task, or a later task rests on it and is not named; or what a
            task left is gone, and its images too.
    """
    lock = LockFile.read(root)
    _check_retrain(config, lock, retrain)
    dag, status = read_dag(root), stage_status(root)
    names = {stage.name for stage in dag.stages}
    looked_at = {name: own for name, own in status.items() if name in names}
    _check_backbone(root, config, lock, looked_at, retrain)
    _check_what_tasks_left(root, config, lock)
    protected = _Protected(root, config, lock, looked_at, frozenset(retrain))
    kept = {name for name in names if protected.keeps(name)}
    changed = looked_at.keys() - kept
    reasons = {name: reason_of(root, config, lock, name, looked_at[name]) for name in changed}
    to_run = frozenset((changed | dag.downstream(changed)) - kept)
    return Plan(root, dag, to_run, reasons, dict(protected.explained()))


@dataclass(frozen=True)
class _Protected:
    """Which stages of learned tasks are kept back.

    Attributes:
        root: the project's folder.
        config: its params.yaml.
        lock: its dvc.lock.
        status: of the stages that DVC calls changed.
        retrain: learned tasks that may be trained again.
    """

    root: Path
    config: Config
    lock: LockFile
    status: Mapping[str, StageStatus]
    retrain: frozenset[str]

    def keeps(self, stage: str) -> bool:
        """Return whether a stage must not run: it would learn anew what was learned, or read images that are gone."""
        kind, _, name = stage.partition("@")
        if kind == "update":
            folder = self.config.updates[name].folder
            changed = stage in self.status and folder in self.status[stage].deps
            return stage in self.lock.stages and (changed or not (self.root / folder).is_dir())
        if name in self.retrain or not self.lock.has_learned(name):
            return False
        if kind in LEARNING:
            return not self._can_be_restored(stage)
        if kind not in OF_IMAGES or (self.root / self.config.task(name).folder).is_dir():
            return False
        if stage not in self.status:
            return True
        if self._can_be_restored(stage):
            return False
        if not self._has_outs(stage):
            raise IntaglioError(
                f"{stage}: task {name!r} left no {kind} yet, and its images in {self.config.task(name).folder} are "
                "gone; put them back for one run, or fetch what it left with `dvc pull`"
            )
        return True

    def explained(self) -> Iterator[tuple[str, str]]:
        """Yield every learned task and update with changes, and why nothing of it runs again."""
        for task in self.config.stream.tasks:
            changed = [stage for kind in (*LEARNING, *OF_IMAGES) if self._waits(stage := f"{kind}@{task}")]
            if changed and (words := self._words(task, changed)):
                yield task, f"{words}; `intaglio run --retrain {task}` would train it again"
        for name, update in self.config.stream.updates.items():
            if self._waits(stage := f"update@{name}") and (self.root / update.folder).is_dir():
                reason = reason_of(self.root, self.config, self.lock, stage, self.status[stage])
                yield name, f"{reason}; more images are another update: `intaglio task update {update.task} FOLDER`"

    def _waits(self, stage: str) -> bool:
        """Return whether a stage is kept back that has something new to read."""
        status = self.status.get(stage)
        return status is not None and status.inputs_changed and not self._can_be_restored(stage) and self.keeps(stage)

    def _words(self, task: str, changed: list[str]) -> str:
        """Say what changed; "" where only the images are gone, which needs no word."""
        folder = self.root / self.config.task(task).folder
        reasons = [
            reason_of(self.root, self.config, self.lock, stage, self.status[stage])
            for stage in changed
            if folder.is_dir() or not stage.startswith("ingest@") or self.status[stage].params
        ]
        later = self.config.chain[self.config.chain.index(task) + 1 :]
        follow = f" (and after it {', '.join(later)})" if later and reasons else ""
        return "; ".join(dict.fromkeys(reasons)) + follow

    def _can_be_restored(self, stage: str) -> bool:
        """Return whether nothing is wrong with a stage but files that are missing, and DVC's cache has them all."""
        status = self.status.get(stage)
        if status is None or status.params or status.command:
            return False
        missing = [path for path, how in (*status.deps.items(), *status.outs.items()) if how == "deleted"]
        changed = [how for how in status.deps.values() if how != "deleted"]
        return not changed and all(self._is_cached(path) for path in [*missing, *status.outs])

    def _is_cached(self, path: str) -> bool:
        """Return whether DVC's cache has a file: as an output, or within a folder that is one."""
        places = (path, *map(str, PurePosixPath(path).parents))
        return any(in_cache(self.root, self._hashes.get(place, "")) for place in places)

    @cached_property
    def _hashes(self) -> Mapping[str, str]:
        """Return the recorded hash of every output, by path."""
        outs = [out for stage in self.lock.stages for out in self.lock.outs(stage).items()]
        return {path: str(facts.get("md5", "")) for path, facts in outs}

    def _has_outs(self, stage: str) -> bool:
        return bool(self.lock.outs(stage)) and all((self.root / path).exists() for path in self.lock.outs(stage))


def _check_retrain(config: Config, lock: LockFile, retrain: Collection[str]) -> None:
    for name in retrain:
        if name not in config.stream.tasks or not lock.has_learned(name):
            learned = ", ".join(task for task in config.stream.tasks if lock.has_learned(task)) or "none"
            raise IntaglioError(f"--retrain {name}: is no learned task with images here; these are: {learned}")
        later = [task for task in config.chain[config.chain.index(name) + 1 :] if lock.has_learned(task)]
        if missing := [task for task in later if task not in retrain]:
            words = " ".join(f"--retrain {task}" for task in (*retrain, *missing))
            raise IntaglioError(
                f"--retrain {name}: the modules of {', '.join(missing)} rest on its module and would be trained again "
                f"too: `intaglio run {words}`; or `intaglio task retrain {name}`, which changes no other module"
            )


def _check_what_tasks_left(root: Path, config: Config, lock: LockFile) -> None:
    """Refuse to go on where something that a task left is neither there nor in DVC's cache, as in a fresh clone.

    Args:
        root: the project's folder.
        config: its params.yaml.
        lock: its dvc.lock.
    """
    if missing := [*_missing_of_archived(root, config), *_missing_of_learned(root, config, lock)]:
        named = f"{', '.join(missing[:_NAMED])}{' and more' if len(missing) > _NAMED else ''}"
        raise IntaglioError(
            f"{root}: {named}: left by tasks, but neither here nor in DVC's cache; `dvc pull` fetches it from the "
            "project's remote"
        )


def _missing_of_archived(root: Path, config: Config) -> Iterator[str]:
    for task in config.stream.archived:
        # An update that came after the archiving has a stage of its own.
        paths = [path for path in left_by(config, task) if Path(path).name not in config.stream.updates]
        yield from (path for path in paths if not (root / path).exists())


def _missing_of_learned(root: Path, config: Config, lock: LockFile) -> Iterator[str]:
    stages = [f"{kind}@{task}" for task in config.stream.tasks for kind in ("finetune", *OF_IMAGES)]
    for stage in (*stages, *(f"update@{name}" for name in config.stream.updates)):
        for path, out in lock.outs(stage).items():
            gone = path.startswith("models/") and not (root / path).exists()
            if gone and not in_cache(root, str(out.get("md5", ""))):
                yield path


def _check_backbone(
    root: Path, config: Config, lock: LockFile, status: Mapping[str, StageStatus], retrain: Collection[str]
) -> None:
    """Refuse another backbone beside tasks that were learned on the present one.

    Args:
        root: the project's folder.
        config: its params.yaml.
        lock: its dvc.lock.
        status: of the stages that DVC calls changed.
        retrain: learned tasks that may be trained again.
    """
    if "backbone" not in lock.stages or "backbone" not in status or not status["backbone"].params:
        return
    if bound := [task for task in learned_tasks(root, config) if task not in retrain]:
        words = changed_settings(root, lock, "backbone", status["backbone"].params)
        raise IntaglioError(
            f"params.yaml: {words}, but {', '.join(bound)} {'was' if len(bound) == 1 else 'were'} learned on the "
            "backbone as it was; put the setting back, or name them all with --retrain"
        )
