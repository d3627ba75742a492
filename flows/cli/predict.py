"""The command that classifies images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Bundle, Device, Precision


def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders, or quoted patterns such as 'in/**/*.jpg'; - reads paths from standard input."
        ),
    ] = None,
    listed: Annotated[
        str | None,
        typer.Option(
            "--list",
            help="Read paths from this file: text with one path per line, or a .csv, .parquet or .jsonl table; "
            "- reads standard input.",
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of the table that holds the paths; without it path, image or file, the first there is."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the answers to this new .parquet, .csv or .jsonl file.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an output that was interrupted; a new one is begun as usual.")
    ] = False,
    as_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per image instead of a table.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Give this many best answers for each image.")] = 1,
    bundle: Bundle = None,
    device: Device = "auto",
    precision: Precision = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Give the best guess also where the answer would be `unknown`.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Predict in this process (local), or in workers on this machine or a cluster (dask).")
    ] = "local",
    scheduler: Annotated[
        str | None, typer.Option(help="Use the running Dask cluster with this scheduler address; needs --engine dask.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode images (local) or predict (dask); without it, chosen for you."),
    ] = None,
) -> None:
    """Name the task and the class of images, with the champion or with the bundle in a folder.

    An image that no task accepts is `unknown`. docs/how-to/predict-many-images.md is about large jobs.
    Exit status 1: without --output, some image has no answer; with it, the output is not complete.
    """
    if not paths and listed is None:
        raise typer.BadParameter("name images, folders or patterns, or give --list FILE")
    from components.inference.image_paths import Inputs
    from flows.prediction.predict import predict as answer
    from flows.prediction.request import PredictionRequest, bundle_folder

    request = PredictionRequest(
        Inputs(tuple(paths or ()), listed, column),
        bundle_folder(bundle),
        output=output,
        resume=resume,
        as_lines=as_lines,
        top=top,
        force=force,
        device=device,
        precision=precision,
        engine=engine,
        scheduler=scheduler,
        workers=workers,
    )
    if status := answer(request):
        raise typer.Exit(status)
