"""Which stage may start next: pure bookkeeping over the DAG, and the one slot for the accelerator.

The slot is kept here and not by a Prefect concurrency limit. The run lock already makes this process the project's only
runner, so no other process competes for it. A task that waits for such a limit would take one of the two workers, while
a stage that is not submitted yet takes none.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.planning.dag import Dag, Stage


class StageScheduler:
    """The state of one run over a DAG; used from one thread only.

    Args:
        dag: all stages.
        to_run: the stages that are looked at, by their plan.
        workers: how many stages may run at a time. Of those that need the device, one.
    """

    def __init__(self, dag: Dag, to_run: Iterable[str], workers: int) -> None:
        self._dag, self._workers = dag, workers
        self._waiting = {stage.name for stage in dag.stages} & set(to_run)
        self._running: dict[str, Stage] = {}
        self._blocked: frozenset[str] = frozenset()
        self.outcomes = {stage.name: "up to date" for stage in dag.stages if stage.name not in self._waiting}
        self.errors: dict[str, BaseException] = {}

    @property
    def total(self) -> int:
        """Number of stages in the DAG."""
        return len(self._dag.stages)

    @property
    def running(self) -> bool:
        """Whether any stage is under way."""
        return bool(self._running)

    @property
    def not_started(self) -> list[str]:
        """Stages that wait for a failed one, in order."""
        return [stage.name for stage in self._dag.stages if stage.name in self._waiting]

    def next_stage(self) -> Stage | None:
        """Take the most urgent stage that may start now; None if there is none, for now or for good."""
        if len(self._running) >= self._workers:
            return None
        device_taken = any(stage.needs_device for stage in self._running.values())
        unfinished = self._waiting | self._running.keys()
        for stage in self._dag.by_urgency():
            if stage.name not in self._waiting or stage.name in self._blocked or stage.upstream & unfinished:
                continue
            if stage.needs_device and device_taken:
                continue
            self._waiting.remove(stage.name)
            self._running[stage.name] = stage
            return stage
        return None

    def finished(self, stage: str, outcome: str) -> None:
        """Record that a stage succeeded: what waits for it may start."""
        del self._running[stage]
        self.outcomes[stage] = outcome

    def failed(self, stage: str, error: BaseException) -> None:
        """Record that a stage failed: what is downstream does not start in this run."""
        del self._running[stage]
        self.outcomes[stage], self.errors[stage] = "failed", error
        self._blocked |= self._dag.downstream([stage])
