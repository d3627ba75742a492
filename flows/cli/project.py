"""The commands about a whole project: make one, bring it up to date, examine it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.errors import IntaglioError


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the project; it is made, or must be empty.")],
    default_stream: Annotated[
        bool, typer.Option("--default-stream", help="Begin with the default stream instead of with no task.")
    ] = False,
    upgrade: Annotated[
        bool,
        typer.Option("--upgrade", help="Give an existing project the dvc.yaml of the installed version instead."),
    ] = False,
) -> None:
    """Make a new project in a folder: settings, pipeline, git and DVC.

    Killed half-way, the same command goes on.
    """
    if upgrade and default_stream:
        raise IntaglioError("--upgrade changes dvc.yaml only; leave out --default-stream")
    if upgrade:
        from flows.project.upgrade import upgrade_project
        from flows.settings import find_root

        lines = upgrade_project(find_root(folder))
    else:
        from flows.project.new_project import init_project

        lines = init_project(folder, default_stream).lines
    print("\n".join(lines))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON, for programs.")] = False,
) -> None:
    """Check this machine and the project around the current folder, and say how to fix what is wrong.

    Exit status 1: a check failed. A warning does not count.
    """
    from flows.project.doctor import as_document, examine

    rows = examine(Path.cwd())
    if as_json:
        import json

        print(json.dumps(as_document(rows), indent=2, ensure_ascii=False))
    else:
        print("\n".join(row.line for row in rows))
    if any(row.state == "FAIL" for row in rows):
        raise typer.Exit(1)
