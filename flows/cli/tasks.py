"""The commands about the tasks of the stream: `intaglio task ...`. Each changes params.yaml at most once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

tasks = typer.Typer(help="Add, update, retire, archive or list the tasks of the stream.", no_args_is_help=True)

_Known = Annotated[str, typer.Argument(help="Name of the task in params.yaml.")]
_Images = Annotated[
    Path,
    typer.Argument(help="Folder with one folder of images per class, or with train, val and test that hold those."),
]
_OtherImages = Annotated[
    Path | None, typer.Argument(help="Folder of the images to learn from instead of the task's own.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of lines for people.")]
_NEXT = "next: `intaglio run`"


@tasks.command()
def add(
    name: Annotated[
        str, typer.Argument(help="Name of the new task: lower-case letters, digits, '_' and '-', at most 63.")
    ],
    folder: _Images,
    params: Annotated[Path | None, typer.Option(help="Change this file instead of the project's params.yaml.")] = None,
    new_stream: Annotated[
        bool, typer.Option("--new-stream", help="Begin a new stream with this task, in place of all tasks so far.")
    ] = False,
    drop_learned: Annotated[
        bool, typer.Option("--drop-learned", help="Let a new stream leave behind tasks that were learned.")
    ] = False,
    note: Annotated[str, typer.Option(help="Remark that is kept on the task's card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the images, which is kept on the task's card.")] = "",
) -> None:
    """Append a folder of images to the stream as its next task; one class is enough."""
    from flows.settings import find_root
    from flows.tasks.add_task import add_task

    added = add_task(find_root(), name, folder, params, new_stream, drop_learned, note, licence)
    place = "begins a new stream" if new_stream else f"follows {added.previous}"
    print(f"task {added.name} {place}: {added.contents.summary} in {added.folder}")
    if added.dropped:
        print(f"dropped: {', '.join(added.dropped)}; the next version does not know them")
    only = "" if new_stream else " does only this task's stages and the shared ones at the end"
    print(f"{_NEXT}{only}")


@tasks.command()
def update(name: _Known, folder: _Images) -> None:
    """Add more images to a learned task: nothing is trained, and new classes are allowed.

    One image is enough.
    """
    from flows.settings import find_root
    from flows.tasks.update_task import update_task

    added = update_task(find_root(), name, folder)
    print(f"update {added.name} of task {added.task}: {sum(added.images.values())} images in {added.folder}")
    for label, count in added.images.items():
        print(f"  {label}: {count}{' (new class)' if label in added.new_classes else ''}")
    print("no module changes, and no other task")
    print(_NEXT)


@tasks.command()
def retrain(name: _Known, folder: _OtherImages = None) -> None:
    """Learn a task once more at the end of the chain, where it may reuse all that was learned since."""
    from flows.settings import find_root
    from flows.tasks.retrain_task import retrain_task

    new = retrain_task(find_root(), name, folder)
    print(f"task {new.name} will replace {new.replaces}: {new.contents.summary} in {new.folder}")
    if new.left_out:
        print(
            f"not learned from: {', '.join(new.left_out)}; put all images into one folder and name it, if they matter"
        )
    print(f"{new.replaces} serves until {new.name} has passed the gates; no other module changes")
    print(_NEXT)


@tasks.command()
def retire(name: _Known) -> None:
    """Take a task out of retrieval: no image is answered with it any more, and nothing else changes."""
    from flows.settings import find_root
    from flows.tasks.retire_task import retire_task

    done = retire_task(find_root(), name)
    print(f"task {name} is retired" if done.changed else f"task {name} was retired already")
    if done.instead:
        print(f"{done.instead} is retrieved again in its place; retire it too if it shall not answer")
    for reuse in done.reused_by:
        print(f"{reuse.task} goes on using {reuse.words}; without them: `intaglio task retrain {reuse.task}`")
    print(f"{_NEXT} for a champion without it; `intaglio task restore {name}` takes it back")


@tasks.command()
def restore(name: _Known) -> None:
    """Put a retired task back into retrieval, as it was."""
    from flows.settings import find_root
    from flows.tasks.retire_task import restore_task

    done = restore_task(find_root(), name)
    print(f"task {name} is restored" if done.changed else f"task {name} was not retired")
    if done.instead:
        print(f"{done.instead} replaces it and goes on answering in its place")
    print(_NEXT)


@tasks.command()
def archive(
    name: _Known,
    delete_images: Annotated[
        bool,
        typer.Option(
            "--delete-images", help="Delete its images in the project, its manifests, reports and cached outputs too."
        ),
    ] = False,
) -> None:
    """Keep what a task left and forget its stages, so that its images may go; it goes on answering."""
    from flows.pipeline.lock import run_lock
    from flows.settings import find_root
    from flows.tasks.archive_task import archive_task

    root = find_root()
    with run_lock(root):  # a run would lose its stages, and its images
        done = archive_task(root, name, delete_images)
    print(f"task {name} {'is' if done.changed else 'was'} archived; {done.file} tracks what it left")
    if done.deleted:
        print(f"deleted: {done.deleted.images} images, {done.deleted.cached} files of cached outputs, its reports")
        for folder, reason in done.deleted.kept.items():
            print(f"{folder}: {reason}")
        print("git, .dvc/cache and reports of earlier versions in mlruns keep what they had")
    else:
        print(f"no stage needs {', '.join(done.folders)} any more; --delete-images deletes the images in the project")
    print(f"next: `git add {done.file} params.yaml`, then `intaglio run`")


@tasks.command()
def order(
    names: Annotated[
        list[str], typer.Argument(help="Tasks that follow the same one, in the order that they shall have.")
    ],
) -> None:
    """Make one chain again after two branches added a task each: the first stays, the others follow."""
    from flows.settings import find_root
    from flows.tasks.order_tasks import order_tasks

    done = order_tasks(find_root(), names)
    for name, previous in done.moved.items():
        print(f"{name} follows {previous}")
    if not done.moved:
        print("nothing to change: they follow each other already")
    words = "".join(f" --retrain {name}" for name in done.again)
    because = f" learns {', '.join(done.again)} again, after the tasks before" if done.again else ""
    print(f"next: `intaglio run{words}`{because}")


@tasks.command(name="list")
def list_tasks(json: _Json = False) -> None:
    """List the tasks in order of arrival: state, classes, images, accuracy, size and folder."""
    from flows.settings import find_root
    from flows.tasks.task_table import table_lines, task_rows

    rows = task_rows(find_root())
    if json:
        _print_json([vars(row) for row in rows])
    else:
        print("\n".join(table_lines(rows)))


@tasks.command()
def show(name: _Known, json: _Json = False) -> None:
    """Show all that is known of a task: its card, and what later modules reuse of it."""
    from flows.settings import find_root
    from flows.tasks.task_table import fact_lines, task_facts

    facts = task_facts(find_root(), name)
    if json:
        _print_json(facts)
    else:
        print("\n".join(fact_lines(facts)))


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, sort_keys=True))
