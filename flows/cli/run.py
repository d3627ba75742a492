"""The commands that run the pipeline: once, or on a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.settings import enter_project


def run() -> None:
    """Run the pipeline once: every stage that changed, then publish, judge and promote.

    With nothing changed it only shows how things stand.
    Exit status 1: a stage failed, another run is at work, or Prefect's server was lost.
    """
    root = enter_project()
    from flows.pipeline.prefect_server import start_server
    from flows.pipeline.prepared import prepared
    from flows.pipeline.summary import closing_lines
    from flows.pipeline.up_to_date import summary_if_up_to_date

    with prepared(root) as project:
        if summary := summary_if_up_to_date(project):
            print("\n".join(closing_lines(summary)))
            return
        print("starting Prefect ...", flush=True)
        server = start_server(root)
        from flows.pipeline.flow import continual_finetuning

        print(f"Prefect's pages during the run: {server.wait()}", flush=True)
        with server.attended():
            continual_finetuning(str(root))


def serve_schedule(
    cron: Annotated[
        str, typer.Option(help="Times of the runs in UTC, as a cron expression of five fields.")
    ] = "0 3 * * *",
) -> None:
    """Run the pipeline at the times that a cron expression gives, until interrupted."""
    root = enter_project()
    from flows.pipeline.schedule import serve_schedule as serve
    from flows.tasks.preflight import preflight

    preflight(root)
    serve(root, cron)
