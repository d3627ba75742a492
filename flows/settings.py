"""Where the project is, and the environment that keeps every tool quiet, offline and inside the project's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from components.errors import IntaglioError

SCRATCH = ".intaglio"
EXPERIMENT = "intaglio"
MODEL = "intaglio"


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder with a dvc.yaml, from `start` (default: the current folder) upwards.

    Raises:
        IntaglioError: there is none, or it was never initialised for DVC.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file():
            if not (folder / ".dvc").is_dir():
                raise IntaglioError(f"{folder}: has a dvc.yaml but no .dvc folder; run `dvc init` there once")
            return folder
    raise IntaglioError(f"{start}: no dvc.yaml here or in a folder above; run the command inside an Intaglio project")


def quiet_environment(root: Path) -> dict[str, str]:
    """Return the settings of the tools: no telemetry, nothing in the user's home. What the user has set wins."""
    scratch = root / SCRATCH
    return {
        "DO_NOT_TRACK": "true",  # MLflow ignores "1"
        "DVC_NO_ANALYTICS": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MPLCONFIGDIR": str(scratch / "matplotlib"),
        "PREFECT_HOME": str(scratch),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the flow prints its own progress; the API has the log
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # of its own threads, which repeat themselves without a server
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def be_quiet(root: Path) -> None:
    """Set the environment of this process. Call it before Prefect or MLflow is imported."""
    for name, value in quiet_environment(root).items():
        os.environ.setdefault(name, value)


def enter(root: Path) -> None:
    """Set the environment of this process, and make `root` the current folder."""
    be_quiet(root)
    (root / SCRATCH).mkdir(exist_ok=True)
    os.chdir(root)


def enter_project() -> Path:
    """Find the project around the current folder, enter it, and return its root.

    Raises:
        IntaglioError: there is none.
    """
    root = find_root()
    enter(root)
    return root


def stage_environment(root: Path) -> dict[str, str]:
    """Return the environment of a stage's process: `python` is this interpreter, and output is not buffered."""
    binaries = str(Path(sys.executable).parent)
    return {
        **quiet_environment(root),
        "TMPDIR": str(scratch_folder(root)),  # what a killed stage leaves there is found and removed
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def scratch_folder(root: Path) -> Path:
    """Return the folder of a run's temporary files; the next run begins with it empty."""
    return root / SCRATCH / "tmp"


def tracking_uri(root: Path) -> str:
    """Return the address of the tracking database and model registry."""
    return f"sqlite:///{root / 'mlruns' / 'mlflow.db'}"


def artifact_root(root: Path) -> Path:
    """Return the folder of the artefacts of runs and models."""
    return root / "mlruns" / "artifacts"
