"""`intaglio task update`: more labelled images for a learned task. Nothing is trained, and no module changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.config import Config, Update
from components.data.image_folder import read_image_folder
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from components.io import read_json
from components.params import load_config
from flows.tasks.add_task import as_recorded, check_folder
from flows.tasks.dvc_files import check_learned, present_generation
from flows.tasks.params_file import ParamsText, change_params, entries, update_entry


@dataclass(frozen=True)
class AddedUpdate:
    """What was appended.

    Attributes:
        name: of the update, as digits.1.
        task: that the images belong to.
        folder: as it stands in params.yaml.
        images: class -> number of images found.
        new_classes: those that the task did not have.
    """

    name: str
    task: str
    folder: str
    images: Mapping[str, int]
    new_classes: tuple[str, ...]


def update_task(root: Path, task: str, folder: Path) -> AddedUpdate:
    """Append an update of a task to params.yaml; one image is enough.

    Args:
        root: the project's folder.
        task: its name.
        folder: of the new images, one sub-folder for each class.

    Raises:
        IntaglioError: the task was not learned or does not answer, or the folder cannot be used; nothing was written.
    """
    params = root / "params.yaml"
    config = load_config(params)
    check_learned(root, config, task)
    _check_answers(config, task)
    folder = folder.resolve()
    check_folder(root, config.stream, folder)
    images = Counter(image.label for image in read_image_folder(folder).images)
    known = known_classes(root, config, task)
    numbers = [int(name.rpartition(".")[2]) for name in config.generations(task)[1:]]
    name = f"{task}.{max(numbers, default=0) + 1}"
    update = Update(folder=as_recorded(root, folder), task=task, previous=config.generation(task))

    def append(text: ParamsText) -> None:
        entries(text.section("stream"), "updates")[name] = update_entry(update)

    change_params(params, append)
    new = tuple(label for label in sorted(images) if label not in known)
    return AddedUpdate(name, task, update.folder, dict(sorted(images.items())), new)


def _check_answers(config: Config, task: str) -> None:
    if config.task(task).retired:
        raise IntaglioError(f"task {task!r}: is retired; run `intaglio task restore {task}` first")
    if task not in config.tasks:
        newer = present_generation(config, task)
        raise IntaglioError(f"task {task!r}: was replaced by {newer}; update that one: `intaglio task update {newer}`")


def known_classes(root: Path, config: Config, task: str) -> frozenset[str]:
    """Return the classes of a task with all its updates, also of those that have not run.

    Args:
        root: the project's folder.
        config: of the project.
        task: its name.

    Raises:
        IntaglioError: neither a record nor a manifest tells the classes, or the folder of an update is gone.
    """
    found, pending = frozenset[str](), list[str]()
    for generation in reversed(config.generations(task)):
        card = root / "models" / "records" / generation / "card.json"
        if card.is_file():
            found = frozenset(read_json(card)["classes"])
            break
        pending.append(generation)
    else:
        pending.remove(task)
        found = frozenset(str(label) for label in read_manifest(root, task)["label"])
    folders = [root / config.updates[name].folder for name in pending]
    return found.union(*(read_image_folder(folder).classes for folder in folders))
