"""`intaglio doctor`: is this machine ready, and is this project whole? Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.errors import IntaglioError
from flows.project.check_result import CheckResult
from flows.project.machine_checks import TorchProbe, check_packages, check_python, check_tools
from flows.project.project_checks import (
    check_cache,
    check_disk,
    check_lock_file,
    check_params,
    check_permissions,
    check_prefect,
    check_registry,
    check_remote,
    check_run_lock,
    check_tasks,
)
from flows.settings import find_root


def examine(start: Path) -> tuple[CheckResult, ...]:
    """Run every check: of the machine, and of the project around a folder.

    Args:
        start: the folder, in a project or not.
    """
    probe = TorchProbe.start()
    machine = [check_python(), check_packages(), check_tools(), check_prefect()]
    try:
        root = find_root(start)
    except IntaglioError as error:
        broken = "but no .dvc folder" in str(error)
        fix = "dvc init" if broken else "intaglio init FOLDER makes one"
        found = str(error).partition(";")[0]
        return (*machine, probe.check(), CheckResult("project", "FAIL" if broken else "warn", found, fix))
    params, config = check_params(root)
    lock = check_lock_file(root)
    rows = [lock, *_project_rows(root)]
    rows += [check_tasks(root, config)] if config and lock.state == "ok" else []
    device = probe.check(config.device if config else "auto")
    return (*machine, device, CheckResult("project", "ok", str(root)), params, *rows)


def _project_rows(root: Path) -> Iterator[CheckResult]:
    remote, cache = check_remote(root)
    places = {"the project": root, "DVC's cache": cache}
    yield check_disk({name: folder for name, folder in places.items() if folder.is_dir()})
    yield check_permissions(root)
    yield check_registry(root)
    yield check_run_lock(root)
    yield remote
    yield check_cache(cache)


def as_document(rows: Sequence[CheckResult]) -> dict[str, Any]:
    """Return the checks for a program: each with name, state, found and fix, and the number of failed ones."""
    return {"failed": sum(row.state == "FAIL" for row in rows), "checks": [asdict(row) for row in rows]}
