"""The card of a task: facts about it that a person and later stages want, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from components.errors import IntaglioError

FORMAT = 1  # With a new number, read the old ones too (`Card.of`), and add a stored record of the old one to the tests.


@dataclass(frozen=True)
class Card:
    """Facts about a task.

    Attributes:
        task: its name.
        classes: names of its C classes; a label is a place among them.
        images: split -> class -> number of readable images, updates included.
        unreadable: number of files that could not be read.
        sizes: smallest and largest image, as [width, height]; empty without images.
        frozen_width: how many leading coordinates of h_0 are the frozen backbone's alone.
        trunk_width: how many leading coordinates of an embedding no module changes.
        validation: the verdict: success, number of expectations, warnings.
        training: figures of the training, and its curve as a list of rows, one for each epoch.
        digests: sha256 of the task's manifest, adapter and backbone.
        updates: what each update brought: its name, images by split, new classes and manifest's sha256.
        note: of the user.
        licence: of the images, as the user gave it.
        software: version that wrote the card.
        format: of the record.
    """

    task: str
    classes: tuple[str, ...]
    images: Mapping[str, Mapping[str, int]]
    unreadable: int
    sizes: list[list[int]]
    frozen_width: int
    trunk_width: int
    validation: Mapping[str, Any]
    training: Mapping[str, Any]
    digests: Mapping[str, str]
    updates: tuple[Mapping[str, Any], ...]
    note: str
    licence: str
    software: str
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, facts: Mapping[str, Any], where: str) -> Card:
        """Read what `to_json` returned.

        Args:
            facts: from the file.
            where: the file, for an error.

        Raises:
            IntaglioError: a later version wrote it, or it lacks something.
        """
        if facts.get("format", 0) > FORMAT:
            raise IntaglioError(
                f"{where}: has format {facts['format']}, this version reads {FORMAT} at most; upgrade intaglio"
            )
        try:
            lists = {name: tuple(facts[name]) for name in ("classes", "updates")}
            return cls(**{**facts, **lists})
        except (KeyError, TypeError) as error:
            raise IntaglioError(f"{where}: is not the card of a task ({error}); run the stage 'record' again") from None

    def count(self, split: str) -> int:
        """Return the number of images of one split."""
        return sum(self.images.get(split, {}).values())


def software() -> str:
    """Return the installed version."""
    try:
        return version("intaglio")
    except PackageNotFoundError:
        return "unknown"
