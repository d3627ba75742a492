"""The commands that measure: `intaglio bench ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.errors import IntaglioError
from flows.cli.options import Bundle, Device, JsonReport, Settings, whole_numbers

bench = typer.Typer(
    help="Measure what predictions, training and serving cost, and compare methods.", no_args_is_help=True
)

Memory = Annotated[bool, typer.Option(help="Measure peak memory too, in a new process for each row.")]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Folder with zip files or folders of images; may be repeated."),
]


@bench.command()
def inference(
    report: JsonReport,
    counts: Annotated[
        str, typer.Option("--tasks", help="Numbers of tasks to measure with, separated by commas.")
    ] = "2,5,10,20,50,100",
    images: Annotated[int, typer.Option(min=1, help="Test images in a timed pass.")] = 192,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all engines take turns; figures are medians.")] = 5,
    memory: Memory = True,
) -> None:
    """Compare the cost of a prediction with the frozen backbone's, for growing numbers of tasks.

    The file is written anew after each number of tasks, so an interrupted measurement is not lost.
    """
    from components.bench.inference import bench_inference
    from components.bench.machine import provenance
    from components.bench.retrieval import bench_retrieval
    from components.io import write_json
    from flows.settings import find_root

    numbers = whole_numbers("--tasks", counts)
    origin = provenance("components.bench.inference")
    found = bench_inference(
        find_root(), numbers, images, rounds, memory, lambda rows: write_json(report, origin | rows)
    )
    write_json(report, origin | found | {"retrieval": bench_retrieval(find_root())})


@bench.command()
def train(
    report: JsonReport,
    blocks: Annotated[int, typer.Option(min=1, help="Last blocks that modules adapt.")] = 4,
    images: Annotated[int, typer.Option(min=2, help="Images to train on, at most.")] = 512,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of each way to train; the first is counted apart.")] = 4,
    tasks: Annotated[
        int, typer.Option(min=0, help="Measure what training costs as tasks are added, up to this many; 0: do not.")
    ] = 50,
    memory: Memory = True,
    lengths: Annotated[
        str, typer.Option(help="Train for these numbers of epochs too, as 10,14, to show loss against time.")
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds over which the losses of this project's way and PEFT's are averaged.")
    ] = 1,
    only: Annotated[
        str, typer.Option("--ways", help="Ways to measure beside this project's and PEFT's; without it, all.")
    ] = "",
    settings: Settings = None,
) -> None:
    """Compare an epoch of training with a plain PEFT loop's, and a late task's epoch with an early one's."""
    from components.bench.machine import provenance
    from components.bench.training import bench_train
    from components.bench.training_ways import WAYS
    from components.io import write_json
    from flows.settings import find_root

    shorter = whole_numbers("--lengths", lengths) if lengths else []
    if shorter and max(shorter) >= epochs:
        raise IntaglioError(f"--lengths {lengths!r}: expected numbers below --epochs {epochs}")
    ways = only.split(",") if only else WAYS
    if unknown := [way for way in ways if way not in WAYS]:
        raise IntaglioError(f"--ways {unknown[0]!r}: unknown; known: {', '.join(WAYS)}")
    found = bench_train(find_root(), blocks, images, epochs, tasks, memory, shorter, seeds, ways, settings or ())
    write_json(report, provenance("components.bench.training") | found)


@bench.command()
def rules(report: JsonReport) -> None:
    """Compare the retrieval rules on this project's test images, the paper's included, with the same modules.

    Tasks whose images are gone are left out and named.
    """
    from components.bench.rules import compare_rules
    from components.io import write_json
    from components.params import load_config
    from flows.settings import find_root

    root = find_root()
    found = compare_rules(root, load_config(root / "params.yaml"))
    write_json(report, found)
    for row in found["rows"]:
        accuracy, retrieval = row["accuracy_final"], row["retrieval_accuracy"]
        print(f"{row['rule']:<7} {row['prediction']}: accuracy {accuracy:.3f}, retrieval {retrieval:.3f}")
    if found["left_out"]:
        print(f"left out, their images are gone: {', '.join(found['left_out'])}")


@bench.command()
def serve(
    report: JsonReport,
    bundle: Bundle = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds of load in each turn.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Times that all ways to serve take turns.")] = 3,
    connections: Annotated[
        int, typer.Option(min=1, max=256, help="Connections that the load generator holds open.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Images that are predicted together, at most.")] = 32,
    device: Device = "auto",
) -> None:
    """Put the HTTP server under load on this machine, with broken images and two reloads.

    Exit status 1: a request was lost.
    """
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


@bench.command()
def build(
    name: Annotated[str, typer.Argument(help="Name of a stream of the laboratory, or the path of a YAML file.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; without it .intaglio/lab/streams/NAME.")] = None,
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
def stream(
    report: JsonReport,
    tasks: Annotated[
        int, typer.Option(min=1, help="Tasks that are added in all; there are about 1.4 times the weeks.")
    ] = 100,
    data: Data = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed that draws what happens in each week.")] = 0,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the project and the finished weeks, so that the same command goes on."),
    ] = None,
    rivals: Annotated[bool, typer.Option(help="Compare with other ways to learn in every tenth week.")] = True,
    archive: Annotated[
        bool, typer.Option("--archive", help="Archive the tasks of earlier weeks at the next change too.")
    ] = False,
    sources: Annotated[
        str, typer.Option(help="Stream of the laboratory, or YAML file, whose sources are split into small tasks.")
    ] = "weeks",
    settings: Settings = None,
) -> None:
    """Let a new project live for many weeks on real images, and measure what each week costs.

    Each week a task is added, updated or retired, or nothing happens; then the pipeline runs to promotion, and the
    images are deleted. The file is written anew after each week. Exit status 1: something that a task left changed.
    """
    import tempfile

    from components.io import write_json
    from flows.bench.stream import StreamBenchSettings, bench_stream
    from flows.settings import find_root

    root, report, keep = find_root(), report.absolute(), keep.absolute() if keep else None
    given = tuple(folder.resolve() for folder in data or [])
    asked = StreamBenchSettings(tasks, seed, sources, given, tuple(settings or ()), rivals, archive)
    with tempfile.TemporaryDirectory(prefix="intaglio-weeks-") as scratch:
        found = bench_stream(root, asked, keep or Path(scratch), lambda figures: write_json(report, figures))
    print(
        ", ".join(
            f"{name} {value if value is None else format(value, '.2f')}" for name, value in found["ratios"].items()
        )
    )


@bench.command()
def quality(
    streams: Annotated[
        str, typer.Option("--stream", help="Names of streams, or paths of YAML files, separated by commas.")
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--method",
            help="Names of methods, separated by commas; `frozen`: those without training; `all`: every one.",
        ),
    ] = "frozen",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds: each gives other splits and other initial values.")] = 3,
    orders: Annotated[int, typer.Option(min=1, help="Orders of the tasks; the first is the declared one.")] = 3,
    train_images: Annotated[
        int | None, typer.Option(min=4, help="Training images of each task, validation included, at most.")
    ] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="Test images of each task, at most.")] = None,
    settings: Settings = None,
    data: Data = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the seeds.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result tables; without it .intaglio/lab/results.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the rows of this run to this JSON file too.")
    ] = None,
    with_theory: Annotated[
        bool, typer.Option("--theory", help="Compare the bounds of the theory with what is measured, too.")
    ] = False,
    log: Annotated[bool, typer.Option(help="Log each experiment to MLflow.")] = True,
) -> None:
    """Compare methods on streams, over several seeds and orders of the tasks.

    Finished experiments are kept: after an interruption, run the same command again.
    """
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
    results: Annotated[Path | None, typer.Option(help="Folder of the stored results; without it docs/results.")] = None,
) -> None:
    """Write the pages of docs/results, with their figures, from the stored results."""
    from components.lab.pages.write import write_pages
    from flows.settings import find_root

    for path in write_pages(results or find_root() / "docs/results"):
        print(path)
