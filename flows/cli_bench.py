"""The commands that measure: `intaglio bench ...`. Imports stand inside the commands, as in flows/cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.errors import IntaglioError

bench = typer.Typer(help="Measure.", no_args_is_help=True)


@bench.command()
def inference(
    report: Annotated[Path, typer.Option("--json", help="Where to write the figures.")],
    counts: Annotated[str, typer.Option("--tasks", help="Numbers of tasks.")] = "2,5,10,20,50,100",
    images: Annotated[int, typer.Option(min=1, help="Test images in a timed pass.")] = 192,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all engines take turns.")] = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each row.")] = True,
) -> None:
    """Compare the cost of a prediction with the frozen backbone's, for growing numbers of tasks."""
    from components.bench_inference import bench_inference
    from components.bench_retrieval import bench_retrieval
    from components.io import write_json
    from flows.settings import find_root

    try:
        numbers = [int(part) for part in counts.split(",")]
    except ValueError:
        raise IntaglioError(f"--tasks {counts!r}: expected whole numbers such as 2,10,50") from None
    if min(numbers) < 1:
        raise IntaglioError(f"--tasks {counts!r}: expected numbers of at least 1")
    found = bench_inference(find_root(), numbers, images, rounds, memory)
    write_json(report, found | {"retrieval": bench_retrieval(find_root())})


@bench.command()
def train(
    report: Annotated[Path, typer.Option("--json", help="Where to write the figures.")],
    blocks: Annotated[int, typer.Option(min=1, help="Last blocks that carry modules.")] = 4,
    images: Annotated[int, typer.Option(min=2, help="Images to train on, at most.")] = 512,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of every way; the first is counted apart.")] = 4,
    tasks: Annotated[int, typer.Option(min=0, help="Measure the cost of task t up to this one.")] = 50,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each row.")] = True,
) -> None:
    """Compare the cost of an epoch of fine-tuning with a plain PEFT loop's, and task 50 with task 2."""
    from components.bench_train import bench_train
    from components.io import write_json
    from flows.settings import find_root

    write_json(report, bench_train(find_root(), blocks, images, epochs, tasks, memory))
