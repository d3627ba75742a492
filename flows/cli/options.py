"""Options that several commands share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.errors import IntaglioError

Bundle = Annotated[
    Path | None, typer.Option(help="Use the bundle in this folder instead of the champion of the project.")
]
Device = Annotated[
    str, typer.Option(help="Device that runs the network: cpu, cuda, mps, or auto for the first there is.")
]
Precision = Annotated[str, typer.Option(help="Arithmetic of the network: fp32, bf16, or auto for bf16 on CUDA only.")]
JsonReport = Annotated[Path, typer.Option("--json", help="Write the measured figures to this JSON file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of params.yaml, as finetune.rank=4; may be repeated."),
]


def whole_numbers(option: str, text: str) -> list[int]:
    """Read whole numbers of at least 1, separated by commas.

    Args:
        option: the option's name, for the error.
        text: what was given.

    Raises:
        IntaglioError: the text is something else.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise IntaglioError(f"{option} {text!r}: expected whole numbers such as 2,10,50") from None
    if min(numbers) < 1:
        raise IntaglioError(f"{option} {text!r}: expected numbers of at least 1")
    return numbers
