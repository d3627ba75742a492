"""The commands about the tasks of the stream: `intaglio task ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

tasks = typer.Typer(help="Add a task to the stream, or list its tasks.", no_args_is_help=True)


@tasks.command()
def add(
    name: Annotated[
        str, typer.Argument(help="Name of the new task: lower-case letters, digits, '_' and '-', at most 63.")
    ],
    folder: Annotated[
        Path,
        typer.Argument(help="Folder with one folder of images per class, or with train, val and test that hold those."),
    ],
    params: Annotated[Path | None, typer.Option(help="Change this file instead of the project's params.yaml.")] = None,
    new_stream: Annotated[
        bool, typer.Option("--new-stream", help="Begin a new stream with this task, in place of all tasks so far.")
    ] = False,
) -> None:
    """Append a folder of images to the stream as its next task."""
    from flows.settings import find_root
    from flows.tasks.add_task import add_task

    added = add_task(find_root(), name, folder, params, new_stream)
    place = "begins a new stream" if new_stream else f"follows {added.previous}"
    print(f"task {added.name} {place}: {added.contents.summary} in {added.folder}")
    only = "" if new_stream else " does only this task's stages and the shared ones at the end"
    print(f"next: `intaglio run`{only}")


@tasks.command(name="list")
def list_tasks() -> None:
    """List the tasks in order of arrival, each with its folder."""
    from components.params import load_config
    from flows.settings import find_root

    config = load_config(find_root() / "params.yaml")
    width = max(len(name) for name in config.tasks)
    for position, (name, task) in enumerate(config.stream.tasks.items(), start=1):
        print(f"{position:>3}  {name:<{width}}  {task.folder}")
