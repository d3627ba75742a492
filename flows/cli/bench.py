"""The commands that measure: `intaglio bench ...`. Imports stand inside the commands, as in flows/cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.errors import IntaglioError

bench = typer.Typer(help="Measure.", no_args_is_help=True)

Set = Annotated[list[str] | None, typer.Option("--set", help="As finetune.rank=4; may be repeated.")]


@bench.command()
def inference(
    report: Annotated[Path, typer.Option("--json", help="Where to write the figures.")],
    counts: Annotated[str, typer.Option("--tasks", help="Numbers of tasks.")] = "2,5,10,20,50,100",
    images: Annotated[int, typer.Option(min=1, help="Test images in a timed pass.")] = 192,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all engines take turns.")] = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each row.")] = True,
) -> None:
    """Compare the cost of a prediction with the frozen backbone's, for growing numbers of tasks.

    The file has what is measured so far after every number of tasks.
    """
    from components.bench.inference import bench_inference
    from components.bench.machine import provenance
    from components.bench.retrieval import bench_retrieval
    from components.io import write_json
    from flows.settings import find_root

    numbers = _numbers("--tasks", counts)
    origin = provenance("components.bench.inference")
    found = bench_inference(
        find_root(), numbers, images, rounds, memory, lambda rows: write_json(report, origin | rows)
    )
    write_json(report, origin | found | {"retrieval": bench_retrieval(find_root())})


@bench.command()
def train(
    report: Annotated[Path, typer.Option("--json", help="Where to write the figures.")],
    blocks: Annotated[int, typer.Option(min=1, help="Last blocks that carry modules.")] = 4,
    images: Annotated[int, typer.Option(min=2, help="Images to train on, at most.")] = 512,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of every way; the first is counted apart.")] = 4,
    tasks: Annotated[int, typer.Option(min=0, help="Measure the cost of task t up to this one.")] = 50,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each row.")] = True,
    lengths: Annotated[str, typer.Option(help="Fewer epochs to train for as well, as 10,14: loss against time.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Over which the losses of ours and PEFT's are averaged.")] = 1,
    only: Annotated[str, typer.Option("--ways", help="Ways to compare, beside ours and PEFT's; default: all.")] = "",
    settings: Set = None,
) -> None:
    """Compare the cost of an epoch of fine-tuning with a plain PEFT loop's, and task 50 with task 2."""
    from components.bench.machine import provenance
    from components.bench.training import bench_train
    from components.bench.training_ways import WAYS
    from components.io import write_json
    from flows.settings import find_root

    shorter = _numbers("--lengths", lengths) if lengths else []
    if shorter and max(shorter) >= epochs:
        raise IntaglioError(f"--lengths {lengths!r}: expected numbers below --epochs {epochs}")
    ways = only.split(",") if only else WAYS
    if unknown := [way for way in ways if way not in WAYS]:
        raise IntaglioError(f"--ways {unknown[0]!r}: unknown; known: {', '.join(WAYS)}")
    found = bench_train(find_root(), blocks, images, epochs, tasks, memory, shorter, seeds, ways, settings or ())
    write_json(report, provenance("components.bench.training") | found)


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise IntaglioError(f"{option} {text!r}: expected whole numbers such as 2,10,50") from None
    if min(numbers) < 1:
        raise IntaglioError(f"{option} {text!r}: expected numbers of at least 1")
    return numbers


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
    from components.bench.machine import provenance
    from components.io import write_json
    from flows.prediction.request import champion_bundle
    from flows.settings import enter, find_root

    root, report = find_root(), report.absolute()
    bundle = bundle.absolute() if bundle else None
    enter(root)
    from flows.bench.serving import ServerBenchSettings, bench_serve

    found = bench_serve(
        root, bundle or champion_bundle(root), ServerBenchSettings(seconds, rounds, connections, batch, device)
    )
    write_json(report, provenance("components.inference.predictor") | found)
    if found["failures"]:
        raise IntaglioError("\n".join(found["failures"]))


Data = Annotated[list[Path] | None, typer.Option("--data", help="Folder of zips or image folders; may be repeated.")]
Streams = Annotated[str, typer.Option("--stream", help="Names or YAML files, separated by commas.")]


@bench.command()
def stream(
    name: Annotated[str, typer.Argument(help="A stream's name, or the path of a YAML file.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: .intaglio/lab/streams/NAME.")] = None,
) -> None:
    """Build a stream of the laboratory: one folder of images per task, as `intaglio task add` takes them."""
    from components.data.images import Limits
    from components.lab.build import build_stream
    from components.lab.stream import load_stream
    from flows.bench.quality import laboratory
    from flows.settings import find_root

    lab, declared = laboratory(find_root(), data or []), load_stream(name)
    folder = out or lab.folder / "streams" / declared.name
    table = build_stream(declared, lab.data, folder, Limits.of(lab.config.data))
    for task, own in table.groupby("task", sort=False):
        counts = own["split"].value_counts()
        print(f"{task:<24} {own['label'].nunique():>4} classes, {counts['train']} + {counts.get('test', 0)} images")
    print(f"{table['task'].nunique()} tasks in {folder}")


@bench.command()
def quality(
    streams: Streams,
    methods: Annotated[str, typer.Option("--method", help="Names separated by commas, `frozen` or `all`.")] = "frozen",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds: other splits, other starts.")] = 3,
    orders: Annotated[int, typer.Option(min=1, help="Orders of the tasks; the first is the declared one.")] = 3,
    train_images: Annotated[int | None, typer.Option(min=4, help="Of each task at most, validation included.")] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="Of each task at most.")] = None,
    settings: Set = None,
    data: Data = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; they share the seeds.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the tables; default: .intaglio/lab/results.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Also write this run's rows to a file.")] = None,
    with_theory: Annotated[bool, typer.Option("--theory", help="Also the theory's promises beside practice.")] = False,
    log: Annotated[bool, typer.Option(help="Log every cell to MLflow.")] = True,
) -> None:
    """Compare methods on streams: a grid of seeds and orders. What is finished is kept; run again after a kill."""
    from components.io import write_json
    from components.lab.tables import summary_lines
    from components.lab.task_sequence import Caps
    from flows.bench.quality import QualityRequest, chosen_methods, log_rows, write_theory
    from flows.bench.quality import quality as run_quality
    from flows.settings import enter, find_root

    root, out, report = find_root(), out and out.resolve(), report and report.resolve()
    given = tuple(folder.resolve() for folder in data or [])
    enter(root)
    caps = Caps(train_images, test_images)
    names = tuple(streams.split(","))
    request = QualityRequest(names, chosen_methods(methods), seeds, orders, caps, tuple(settings or ()), given, jobs)
    rows = run_quality(root, request, folder := out or root / ".intaglio/lab/results")
    if with_theory:
        write_theory(root, request, folder)
    if report:
        write_json(report, {"rows": rows.to_dict("records")})
    if log:
        log_rows(root, rows)
    print("\n".join(summary_lines(rows)))


@bench.command()
def report(
    results: Annotated[Path | None, typer.Option(help="Folder of stored results; default: docs/results.")] = None,
) -> None:
    """Write the pages of docs/results, with their figures, from the stored results."""
    from components.lab.pages.write import write_pages
    from flows.settings import find_root

    for path in write_pages(results or find_root() / "docs/results"):
        print(path)
