"""Serve the flow on a schedule."""

from __future__ import annotations

import warnings
from pathlib import Path

from components.errors import IntaglioError
from flows.pipeline.prefect_server import start_server


def serve_schedule(root: Path, cron: str) -> None:
    """Run the flow at the times that `cron` gives (UTC), until interrupted.

    Raises:
        IntaglioError: `cron` is not a cron expression, or Prefect's server did not start.
    """
    server = start_server(root, schedules=True)
    from flows.pipeline.flow import continual_finetuning

    _check_cron(cron)
    # Prefect 3.8 does not await its own clean-up when it is terminated, and Python warns about that.
    warnings.filterwarnings("ignore", message=r"coroutine 'Runner\.astop' was never awaited")
    print(f"serving continual_finetuning on {cron!r}; pages at {server.wait()}; Ctrl-C ends it", flush=True)
    continual_finetuning.serve(
        name="scheduled", cron=cron, parameters={"root": str(root)}, print_starting_message=False
    )


def _check_cron(cron: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise IntaglioError(f"--cron {cron!r}: not a cron expression; expected five fields as in '0 3 * * *'") from None
