"""The command that answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Bundle, Device, Precision


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 stands for all of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8080,
    bundle: Bundle = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Images that are predicted together, at most.")] = 32,
    delay_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds that an image waits for others on their way, at most.")
    ] = 5.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Images held at once, at most; requests beyond it get status 503.")
    ] = 256,
    device: Device = "auto",
    precision: Precision = "auto",
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at which version is champion.")] = 5.0,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Size of a request's body in MiB, at most.")] = 16.0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM in which new connections are answered still.")
    ] = 1.0,
    grace: Annotated[
        float, typer.Option(min=1, help="Seconds after that in which begun requests may end, at most.")
    ] = 30.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Write one JSON line per request to standard error.")
    ] = False,
) -> None:
    """Answer requests over HTTP with the champion, until SIGTERM or Ctrl-C.

    A new champion takes over without a restart. docs/reference/http.md describes the routes.
    Exit status 0 after an orderly end; 1: the address is taken, or the first version cannot be loaded.
    """
    from flows.settings import be_quiet, find_root

    root = Path.cwd() if bundle else find_root()
    be_quiet(root)
    from flows.serving.run import Options
    from flows.serving.run import serve as serve_until_stopped
    from flows.serving.served_model import Champion, Folder

    options = Options(
        host=host,
        port=port,
        batch=batch,
        delay=delay_ms / 1e3,
        queue=queue,
        device=device,
        precision=precision,
        poll=poll,
        max_body=round(max_body_mb * 2**20),
        drain=drain,
        grace=grace,
        access_log=access_log,
    )
    serve_until_stopped(options, Folder(bundle) if bundle else Champion(root))
