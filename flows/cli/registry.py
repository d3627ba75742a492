"""The commands about registered versions: promote, rollback, status and certificate."""

from __future__ import annotations

from typing import Annotated

import typer

from components.errors import IntaglioError
from flows.settings import enter_project


def promote(
    version: Annotated[
        int | None, typer.Option(help="Number of the version to promote; without it, the challenger.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Promote the version even if a gate blocks it; needs --reason.")] = False,
    reason: Annotated[
        str, typer.Option(help="Why a gate is overruled; the text is kept in the version's tag `forced`.")
    ] = "",
) -> None:
    """Judge the challenger by the gates, and make it champion if it passes.

    Exit status 1: a gate blocked it.
    """
    if force and not reason.strip():
        raise IntaglioError("--force needs --reason TEXT: it is kept with the version")
    root = enter_project()
    from components.params import load_config
    from flows.pipeline.lock import run_lock
    from flows.pipeline.summary import gate_table, verdict
    from flows.registry.mlflow_store import connect
    from flows.registry.promote import promote as promote_version

    with run_lock(root):
        gates = load_config(root / "params.yaml").gates
        number = None if version is None else str(version)
        decision = promote_version(connect(root), gates, number, reason.strip() if force else None)
    for line in [verdict(decision), *gate_table(decision.rows)]:
        print(line)
    if decision.verdict == "blocked":
        raise typer.Exit(1)


def rollback() -> None:
    """Make the previous champion champion again."""
    root = enter_project()
    from flows.pipeline.lock import run_lock
    from flows.registry.mlflow_store import connect
    from flows.registry.promote import rollback as roll_back

    with run_lock(root):
        before, after = roll_back(connect(root))
    print(f"champion: version {after} again; version {before} was rolled back")


def status() -> None:
    """Show the champion, the newest versions and the last runs."""
    root = enter_project()
    from flows.registry.status import status_lines

    for line in status_lines(root):
        print(line)


def certificate() -> None:
    """Show how well the last run's tasks can be told apart: what is guaranteed, and what was measured."""
    root = enter_project()
    from components.io import read_json
    from flows.pipeline.summary import certificate_lines

    for line in certificate_lines(read_json(root / "reports" / "metrics.json")):
        print(line)
