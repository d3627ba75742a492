"""The files of a record, written whole or not at all.

models/records/<generation>: card.json, test.parquet and test.safetensors (evaluation), update.safetensors (updates).
A generation is a task, or an update of one.
"""

from __future__ import annotations

from pathlib import Path

from components.config import Config
from components.io import atomic_folder, read_arrays, read_json, read_table, write_arrays, write_json, write_table
from components.records.card import Card
from components.records.recorded_images import RecordedImages
from components.records.update_basis import UpdateBasis


def record_folder(root: Path, generation: str) -> Path:
    """Return where the record of a task or of an update lies."""
    return root / "models" / "records" / generation


def write_record(root: Path, generation: str, card: Card, test: RecordedImages, basis: UpdateBasis) -> None:
    """Write the record of a task, or of an update.

    Args:
        root: the project's folder.
        generation: name of the task or of the update.
        card: facts about the task.
        test: what evaluation reads.
        basis: what the next update reads.
    """
    with atomic_folder(record_folder(root, generation)) as folder:
        write_json(folder / "card.json", card.to_json())
        write_table(folder / "test.parquet", test.to_table())
        write_arrays(folder / "test.safetensors", test.to_arrays())
        write_arrays(folder / "update.safetensors", basis.to_arrays())


def read_card(root: Path, generation: str) -> Card:
    """Read the card of a task, or of an update.

    Raises:
        IntaglioError: it is missing, damaged or of a later format.
    """
    path = record_folder(root, generation) / "card.json"
    return Card.of(read_json(path), str(path))


def read_cards(root: Path, config: Config) -> dict[str, Card]:
    """Read the present card of every task that images are retrieved for, in order of arrival."""
    return {task: read_card(root, config.generation(task)) for task in config.tasks}


def read_recorded_images(root: Path, config: Config, task: str) -> RecordedImages:
    """Read the test images of a task as its last generation sees them.

    Raises:
        IntaglioError: the record is missing or damaged.
    """
    return read_record_of(root, config.generation(task), task)


def read_record_of(root: Path, generation: str, task: str) -> RecordedImages:
    """Read the test images of one generation of a task.

    Args:
        root: the project's folder.
        generation: the task's name, or that of an update.
        task: its name.

    Raises:
        IntaglioError: the record is missing or damaged.
    """
    folder = record_folder(root, generation)
    return RecordedImages.of_files(task, read_table(folder / "test.parquet"), read_arrays(folder / "test.safetensors"))


def read_update_basis(root: Path, generation: str) -> UpdateBasis:
    """Read what the next update of a generation needs.

    Raises:
        IntaglioError: the record is missing or damaged.
    """
    return UpdateBasis.from_arrays(read_arrays(record_folder(root, generation) / "update.safetensors"))
