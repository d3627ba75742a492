"""Checkpoints of a long computation: after a kill it resumes from the last one and ends with the same bytes.

    .intaglio/checkpoints/<name>/<hash of inputs and code>/<step>-<sha256 of the file>.safetensors

A checkpoint is one safetensors file: arrays, and plain facts as JSON in its header. Its name holds the sha256 of its
content, so that one rename publishes it and one hash verifies it. The last two are kept: if the newest is damaged, the
one before it serves.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from components.arrays import Arrays
from components.errors import IntaglioError
from components.fingerprint import code_fingerprint
from components.io import sha256_bytes, sha256_file, write_bytes

# Not in params.yaml: it changes no result, and a change there would make DVC train every task again.
SECONDS_VARIABLE = "INTAGLIO_CHECKPOINT_SECONDS"
DEFAULT_SECONDS = 10.0
_FOLDER = ".intaglio/checkpoints"  # no output of the stage: DVC removes outputs before it runs a stage again
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A state at one step: arrays, and facts that JSON can hold (numbers keep every bit)."""

    step: int
    arrays: Arrays
    facts: Mapping[str, Any]


@dataclass
class Checkpoints:
    """The checkpoints of one computation, in a folder whose name is a hash of all that determines the result.

    Attributes:
        folder: where they are.
        every: seconds of work that a kill may cost at most; 0 keeps every step.
    """

    folder: Path
    every: float
    _last: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, root: Path, name: str, inputs: Mapping[str, Any], code: str) -> Checkpoints:
        """Open those of the computation `name` with these `inputs`, as made by the present `code`.

        Checkpoints of `name` with other inputs, or by other code, lead to another result: they are removed.

        Args:
            root: folder under which all checkpoints lie.
            name: what is computed; one computation of a name at a time.
            inputs: all that determines the result beside the code, as JSON holds it.
            code: dotted name of the module that computes; all that it imports counts too.

        Raises:
            IntaglioError: the environment asks for an impossible interval.
        """
        fingerprint = sha256_bytes(
            json.dumps({"inputs": inputs, "code": code_fingerprint(code)}, sort_keys=True).encode()
        )
        folder = root / _FOLDER / name / fingerprint[:32]
        if folder.parent.is_dir():
            for stale in folder.parent.iterdir():
                if stale != folder:
                    shutil.rmtree(stale)
        return cls(folder, _seconds())

    def due(self) -> bool:
        """Return whether `every` seconds have passed since the last checkpoint."""
        return time.monotonic() - self._last >= self.every

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, synced to the disk; then remove all but the last two, and temporaries of killed writers.

        Raises:
            IntaglioError: the disk is full or read-only, or permission is missing.
        """
        arrays = {name: checkpoint.arrays[name] for name in sorted(checkpoint.arrays)}
        content = save(arrays, metadata={"facts": json.dumps(checkpoint.facts, allow_nan=False)})
        write_bytes(self.folder / f"{checkpoint.step:012d}-{sha256_bytes(content)}.safetensors", content)
        for path in set(self.folder.iterdir()) - set(self._files()[-_KEPT:]):
            path.unlink()
        self._last = time.monotonic()

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None, and remove damaged ones."""
        for path in reversed(self._files()):
            if (found := _read(path)) is not None:
                return found
            print(f"warning: {path.name} is damaged; going back to the checkpoint before it", flush=True)
            path.unlink()
        return None

    def clear(self) -> None:
        """Remove all of them, when the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # checkpoints with other inputs may be beside them
            self.folder.parent.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-*.safetensors"))


def _read(path: Path) -> Checkpoint | None:
    """Read a checkpoint; return None where its content is not the one that its name promises."""
    step, _, digest = path.stem.partition("-")
    try:
        if sha256_file(path) != digest:
            return None
        with safe_open(path, framework="np") as file:
            names, facts = file.keys(), json.loads(file.metadata()["facts"])
            return Checkpoint(int(step), {name: file.get_tensor(name) for name in names}, facts)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _seconds() -> float:
    """Return the interval between checkpoints that the environment asks for."""
    given = os.environ.get(SECONDS_VARIABLE, str(DEFAULT_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise IntaglioError(f"{SECONDS_VARIABLE} is {given!r}; expected a number of seconds, 0 or more")
    return seconds
