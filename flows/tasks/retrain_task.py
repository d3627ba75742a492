"""`intaglio task retrain`: a new generation of a task at the end of the chain. No other module changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from components.config import Config, Task
from components.data.image_folder import ImageFolder, read_image_folder
from components.errors import IntaglioError
from components.params import load_config
from flows.tasks.add_task import append, as_recorded, check_folder, check_name
from flows.tasks.dvc_files import check_learned, learned_tasks, present_generation
from flows.tasks.params_file import change_params


@dataclass(frozen=True)
class NewGeneration:
    """What was appended.

    Attributes:
        name: of the new task, as digits-2.
        replaces: the task in whose place it will be retrieved.
        folder: as it stands in params.yaml.
        contents: what was found in the folder.
        left_out: folders of updates whose images the new task will not learn from.
    """

    name: str
    replaces: str
    folder: str
    contents: ImageFolder
    left_out: tuple[str, ...]


def retrain_task(root: Path, task: str, folder: Path | None = None) -> NewGeneration:
    """Append a new generation of a task to params.yaml.

    Args:
        root: the project's folder.
        task: its name, or that of an earlier generation of it.
        folder: of the images to learn from; default the folder of the task.

    Raises:
        IntaglioError: the task was not learned, its last generation still waits, or the folder cannot be used.
    """
    params = root / "params.yaml"
    config = load_config(params)
    check_learned(root, config, task)
    present = present_generation(config, task)
    if present not in learned_tasks(root, config):
        raise IntaglioError(f"task {present!r}: is the next generation of {task!r} already; run `intaglio run`")
    before = config.task(present)
    source = (folder or root / before.folder).resolve()
    generations = {present, *config.replaced_by(present)}
    if folder is None and not source.is_dir():
        raise IntaglioError(
            f"{source}: the images of task {present!r} are gone; name others: `intaglio task retrain {task} FOLDER`"
        )
    check_folder(root, config.stream, source, but=generations)
    contents = read_image_folder(source)
    first = next(name for name in config.chain if name in generations)
    name = _next_name(config, first)
    check_name(root, params, config, name)
    new = Task(folder=as_recorded(root, source), previous=config.chain[-1], replaces=present)
    new = new.model_copy(update={"note": before.note, "licence": before.licence})
    change_params(params, lambda text: append(text, name, new))
    left_out = tuple(config.updates[update].folder for update in config.generations(present)[1:])
    return NewGeneration(name, present, new.folder, contents, left_out)


def _next_name(config: Config, first: str) -> str:
    return next(name for number in count(2) if (name := f"{first}-{number}") not in config.chain)
