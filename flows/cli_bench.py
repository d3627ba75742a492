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
def serve(
    report: Annotated[Path, typer.Option("--json", help="Where to write the figures.")],
    bundle: Annotated[Path | None, typer.Option(help="A bundle's folder instead of the champion.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Of every turn.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Times that all ways take turns.")] = 3,
    connections: Annotated[int, typer.Option(min=1, max=256, help="Of the load generator.")] = 64,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Images predicted together at most.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Load the server on this machine, with broken images and two reloads; fails if a request is lost."""
    from components.io import write_json
    from flows.classify import champion_bundle
    from flows.settings import enter, find_root

    root, report = find_root(), report.absolute()
    bundle = bundle.absolute() if bundle else None
    enter(root)
    from flows.serving.bench import Settings, bench_serve

    found = bench_serve(root, bundle or champion_bundle(root), Settings(seconds, rounds, connections, batch, device))
    write_json(report, found)
    if found["failures"]:
        raise IntaglioError("\n".join(found["failures"]))
