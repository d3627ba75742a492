"""`intaglio task list` and `show`: every task of the stream, from params.yaml, dvc.lock and what the tasks left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.config import Config
from components.data.task_data import SPLITS
from components.errors import IntaglioError
from components.io import read_json
from components.params import load_config
from components.records.card import Card
from flows.tasks.dvc_files import learned_tasks, left_by, present_generation
from flows.tasks.retire_task import reused_by


@dataclass(frozen=True)
class TaskRow:
    """A task of the stream.

    Attributes:
        place: in order of arrival, from 1.
        name: of the task.
        state: new, learned or archived; then retired, or replaced by another.
        generation: the name under which its signature and record are stored today.
        classes: number of classes; None where it left no record yet.
        images: number of readable images of all splits, likewise.
        accuracy: on its test images with the task unknown; None where it was not measured.
        bytes: of its module, and of the signatures and records of all its generations.
        folder: of its images, as params.yaml holds it.
        folder_exists: whether it is there.
    """

    place: int
    name: str
    state: str
    generation: str
    classes: int | None
    images: int | None
    accuracy: float | None
    bytes: int
    folder: str
    folder_exists: bool


def task_rows(root: Path) -> list[TaskRow]:
    """Describe every task of the chain, in order of arrival."""
    config = load_config(root / "params.yaml", empty=True)
    learned, measured = frozenset(learned_tasks(root, config)), _measured(root)
    return [_row(root, config, place, learned, measured) for place in range(len(config.chain))]


def table_lines(rows: list[TaskRow]) -> list[str]:
    """Return a table of tasks, a line each, below a line of headings."""
    head = ("", "task", "state", "generation", "classes", "images", "accuracy", "MB", "folder")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    left = {1, 2, 3, 8}
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def task_facts(root: Path, task: str) -> dict[str, Any]:
    """Return all that is known of a task: its row, its card, and what later modules reuse of it.

    Args:
        root: the project's folder.
        task: its name.

    Raises:
        IntaglioError: there is no such task.
    """
    config = load_config(root / "params.yaml", empty=True)
    if task not in config.chain:
        raise IntaglioError(f"task {task!r}: not in {root / 'params.yaml'}; it has {', '.join(config.chain)}")
    card = _card(root, config, task)
    return {
        **asdict(_row(root, config, config.chain.index(task), frozenset(learned_tasks(root, config)), _measured(root))),
        "card": card.to_json() if card else None,
        "reused_by": {reuse.task: reuse.directions for reuse in reused_by(root, config, task)},
        "replaces": config.task(task).replaces,
    }


def fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `task_facts` returned, in plain lines."""
    yield f"{facts['name']}: task {facts['place']}, {facts['state']}, generation {facts['generation']}"
    yield f"folder: {facts['folder']}{'' if facts['folder_exists'] else ' (gone)'}"
    yield f"left: {facts['bytes'] / 1e6:.2f} MB"
    if facts["accuracy"] is not None:
        yield f"accuracy with the task unknown: {facts['accuracy']:.3f}"
    if card := facts["card"]:
        yield from _card_lines(card)
    else:
        yield "no card yet; `intaglio run` writes it"
    for later, directions in facts["reused_by"].items():
        amount = "mixtures of its directions" if directions is None else f"{directions} of its directions"
        yield f"{later} reuses {amount}"
    if not facts["reused_by"]:
        yield "no later module reuses its directions"


def _card_lines(card: Mapping[str, Any]) -> Iterator[str]:
    splits = {split: sum(card["images"].get(split, {}).values()) for split in SPLITS}
    yield f"images: {', '.join(f'{count} {split}' for split, count in splits.items())}"
    for label in card["classes"]:
        yield f"  {label}: {sum(counts.get(label, 0) for counts in card['images'].values())}"
    figures = card["training"]
    for name in ("val_accuracy", "epochs", "reused_directions"):
        if figures.get(name) is not None:
            yield f"{name.replace('_', ' ')}: {figures[name]:.6g}"
    for update in card["updates"]:
        added = sum(sum(counts.values()) for counts in update["images"].values())
        new = f", new classes: {', '.join(update['new_classes'])}" if update["new_classes"] else ""
        yield f"update {update['name']}: {added} images{new}"
    for name in ("note", "licence", "software"):
        if card[name]:
            yield f"{name}: {card[name]}"


def _row(root: Path, config: Config, place: int, learned: frozenset[str], measured: Mapping[str, Any]) -> TaskRow:
    """Describe one task.

    Args:
        root: the project's folder.
        config: of the project.
        place: of the task in the chain, from 0.
        learned: tasks that were learned.
        measured: task -> its figures in metrics.json.
    """
    task = config.chain[place]
    folder, card = config.task(task).folder, _card(root, config, task)
    accuracy = measured.get(task, {}).get("accuracy")
    return TaskRow(
        place=place + 1,
        name=task,
        state=_state(config, task, learned),
        generation=config.generation(task),
        classes=len(card.classes) if card else None,
        images=sum(card.count(split) for split in card.images) if card else None,
        accuracy=accuracy if isinstance(accuracy, float | int) else None,
        bytes=sum(_size(root / path) for path in left_by(config, task) if not path.startswith("data/")),
        folder=folder,
        folder_exists=(root / folder).is_dir(),
    )


def _state(config: Config, task: str, learned: frozenset[str]) -> str:
    state = "archived" if task in config.stream.archived else "learned" if task in learned else "new"
    if config.task(task).retired:
        return f"{state}, retired"
    newer = present_generation(config, task)
    return state if newer == task else f"{state}, replaced by {newer}"


def _card(root: Path, config: Config, task: str) -> Card | None:
    """Return the last card of a task; None where it left none yet."""
    for generation in reversed(config.generations(task)):
        path = root / "models" / "records" / generation / "card.json"
        if path.is_file():
            return Card.of(read_json(path), str(path))
    return None


def _measured(root: Path) -> Mapping[str, Any]:
    path = root / "reports" / "metrics.json"
    found = read_json(path).get("per_task") if path.is_file() else None
    return found if isinstance(found, Mapping) else {}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _cells(row: TaskRow) -> tuple[str, ...]:
    return (
        str(row.place),
        row.name,
        row.state,
        row.generation,
        "-" if row.classes is None else str(row.classes),
        "-" if row.images is None else str(row.images),
        "-" if row.accuracy is None else f"{row.accuracy:.3f}",
        f"{row.bytes / 1e6:.2f}",
        row.folder if row.folder_exists else f"{row.folder} (gone)",
    )
