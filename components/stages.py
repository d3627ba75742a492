"""The thin command line that dvc.yaml calls: `python -m components.stages STAGE [TASK]`.

Exit status: 0; 1 for an error that the user can act on; 75 (EX_TEMPFAIL) where trying again may help. Where several
processes share a training, each of them is this command too, with status 76 where another process ended first.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path

from ruamel.yaml import YAML

from components.config import Config
from components.errors import (
    ABANDONED,
    DISK_FAULTS,
    TRY_AGAIN,
    IntaglioError,
    PeersLostError,
    TransientError,
    disk_error,
)
from components.params import load_config
from components.revisions import REVISIONS

_PARENT = os.getppid()
_IS_TRAINING_PROCESS = "TORCHELASTIC_RUN_ID" in os.environ  # one of several, started by torch.distributed.elastic
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# stage -> its function, imported when it is called: a stage without torch does not wait for torch's import.
STAGES = {
    "backbone": "components.vision.pretrained:convert",
    "fetch": "components.data.default_stream:fetch",
    "evaluate": "components.evaluation.evaluate:evaluate",
    "report": "components.report.report:write_report",
    "bundle": "components.inference.bundle:write_bundle",
}
TASK_STAGES = {
    "ingest": "components.data.manifest:ingest",
    "validate": "components.data.validate:validate",
    "finetune": "components.training.finetune:finetune",
    "signature": "components.signatures.fit:fit_signature",
    "record": "components.records.record:record",
    "update": "components.records.update:update",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one stage in the current folder and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m components.stages", description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=[*STAGES, *TASK_STAGES])
    parser.add_argument("task", nargs="?")
    parser.add_argument("--revision", type=int, help="of the stage, so that dvc.yaml changes with it")
    given = parser.parse_args(arguments)
    if (given.task is not None) != (given.stage in TASK_STAGES):
        parser.error(f"stage {given.stage} takes {'a' if given.stage in TASK_STAGES else 'no'} task")
    _end_with_dvc()
    try:
        config = load_config()
        known = config.stream.updates if given.stage == "update" else config.stream.tasks
        if given.task is not None and given.task not in known:
            kind = "update" if given.stage == "update" else "task"
            raise IntaglioError(f"params.yaml has no {kind} {given.task!r}; it has {', '.join(known) or 'none'}")
        _check_revision(given.stage, given.revision)
        _run(config, given.stage, *([given.task] if given.task else []))
        _check_unchanged(config, given.stage)
    except PeersLostError:
        return ABANDONED
    except TransientError as error:
        return _fail(error, TRY_AGAIN)
    except IntaglioError as error:
        return _fail(error, 1)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        return _fail(disk_error(Path.cwd(), error), 1)
    return 0


def _check_revision(stage: str, given: int | None) -> None:
    """Refuse to run beside a dvc.yaml of another version, whose results would be recorded under its revision.

    Raises:
        IntaglioError: dvc.yaml names another revision than the software has.
    """
    if given is not None and given != REVISIONS[stage]:
        raise IntaglioError(
            f"dvc.yaml names revision {given} of the stage {stage}, the software has {REVISIONS[stage]}; "
            "run `intaglio init --upgrade .` for the dvc.yaml of this version"
        )


def _check_unchanged(before: Config, stage: str) -> None:
    """Refuse a result beside settings that changed meanwhile: DVC records those that it finds afterwards.

    Raises:
        TransientError: params.yaml changed in a section that dvc.yaml declares for the stage.
    """
    now = load_config()
    if changed := [name for name in _declared_sections(stage) if getattr(now, name) != getattr(before, name)]:
        raise TransientError(
            f"params.yaml changed in {', '.join(changed)} while the stage {stage} ran; it runs once more with that"
        )


def _declared_sections(stage: str) -> set[str]:
    """Return the sections of params.yaml that a stage of dvc.yaml depends on."""
    try:
        entry = YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"][stage]
    except FileNotFoundError:  # run by hand, where nothing is recorded
        return set()
    return {str(name).partition(".")[0] for name in entry.get("do", entry).get("params", [])}


def _run(config: Config, stage: str, *task: str) -> None:
    """Run a stage here, or have several processes run it where a training is shared."""
    if stage == "finetune" and config.finetune.processes > 1 and not _IS_TRAINING_PROCESS:
        from components.training.distributed import launch

        launch(["-m", "components.stages", stage, *task], config.finetune.processes)  # each of them runs the stage
        return
    module, _, name = (STAGES | TASK_STAGES)[stage].partition(":")
    getattr(importlib.import_module(module), name)(Path(), config, *task)


def _end_with_dvc() -> None:
    """Have the kernel kill this process when its parent ends: DVC, or the launcher of several training processes.

    A killed DVC leaves its stages running. They would go on writing while the next run starts a second writer.
    """
    if ("DVC_STAGE" in os.environ or _IS_TRAINING_PROCESS) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != _PARENT:  # the parent ended before the call
            os.kill(os.getpid(), signal.SIGKILL)


def _fail(error: IntaglioError, status: int) -> int:
    """Report an error on stderr, a line each, and return the exit status."""
    if _IS_TRAINING_PROCESS:  # the launcher prints it, once for all processes
        from components.training.distributed import report_to_launcher

        report_to_launcher(error)
        return status
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
