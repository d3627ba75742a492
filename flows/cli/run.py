"""The commands that run the pipeline: once, or on a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.settings import enter_project

Retrain = Annotated[
    list[str] | None,
    typer.Option(help="Name a learned task that may be trained again, with all after it; may be repeated."),
]


def run(retrain: Retrain = None) -> None:
    """Run the pipeline once: every stage that changed, then publish, judge and promote.

    It begins with its plan, as `intaglio plan` shows it. With nothing changed it only shows how things stand.
    Exit status 1: a stage failed, another run is at work, or Prefect's server was lost.
    """
    root = enter_project()
    from flows.pipeline.prefect_server import start_server
    from flows.pipeline.prepared import prepared
    from flows.pipeline.summary import closing_lines
    from flows.pipeline.up_to_date import summary_if_up_to_date

    with prepared(root, retrain or ()) as project:
        if summary := summary_if_up_to_date(project):
            print("\n".join([*project.plan.lines[:-1], *closing_lines(summary)]))
            return
        print("starting Prefect ...", flush=True)
        server = start_server(root)
        from flows.pipeline.flow import continual_finetuning

        print(f"Prefect's pages during the run: {server.wait()}", flush=True)
        with server.attended():
            continual_finetuning(str(root))


def plan(retrain: Retrain = None) -> None:
    """Show which stages a run would run, why, and about how long it would take.

    Nothing is started or changed.
    """
    root = enter_project()
    from flows.planning.plan import make_plan
    from flows.tasks.preflight import preflight

    for line in make_plan(root, preflight(root), retrain or ()).lines:
        print(line)


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
