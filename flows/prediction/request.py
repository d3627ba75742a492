"""The options of `intaglio predict`, and the bundle that it loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import IntaglioError

if TYPE_CHECKING:
    from components.inference.image_paths import Inputs

LOCAL, DASK = "local", "dask"


@dataclass(frozen=True)
class PredictionRequest:
    """What `intaglio predict` is to do.

    Attributes:
        inputs: The images.
        bundle: The bundle's folder.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
        top: Guesses for each image.
        force: Whether an image of no known task gets the best guess.
        engine: LOCAL or DASK.
        workers: Processes that decode (LOCAL) or that predict (DASK); None: as many as suit this machine.
        scheduler: Address of a running Dask cluster; None: start one here.
        output: The file for the results; None: standard output.
        resume: Whether to go on with an output that was interrupted.
        as_lines: Whether to print JSON lines instead of tables.
    """

    inputs: Inputs
    bundle: Path
    device: str = "auto"
    precision: str = "auto"
    top: int = 1
    force: bool = False
    engine: str = LOCAL
    workers: int | None = None
    scheduler: str | None = None
    output: Path | None = None
    resume: bool = False
    as_lines: bool = False


def champion_bundle(root: Path) -> Path:
    """Return the folder with the champion's bundle.

    Raises:
        IntaglioError: there is no champion yet.
    """
    database = root / "mlruns" / "mlflow.db"
    if database.is_file():
        from flows.registry.mlflow_store import CHAMPION, aliases, bundle_of, connect

        client = connect(root)
        champion = aliases(client).get(CHAMPION)
        if champion:
            return bundle_of(client, root, champion)
    raise IntaglioError(
        f"{root}: no champion yet; `intaglio run` promotes one, or name a bundle's folder with `--bundle DIR`"
    )


def bundle_folder(named: Path | None) -> Path:
    """Return the bundle that was named, or the champion's of the project around the current folder.

    Raises:
        IntaglioError: there is no such folder, no project or no champion.
    """
    if named is not None:
        if not named.is_dir():
            raise IntaglioError(f"{named}: folder not found; a bundle is the folder that the stage `bundle` writes")
        return named
    from flows.settings import be_quiet, find_root

    root = find_root()
    be_quiet(root)
    return champion_bundle(root)
