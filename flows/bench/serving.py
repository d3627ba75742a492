"""`intaglio bench serve`: what batching brings, and whether the server loses a request under load and two reloads.

Traffic goes to this machine alone, for a bounded time. The ways to serve take turns within one run, so that a busy
machine slows all of them alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from components.data.images import open_image
from components.errors import IntaglioError
from components.inference.predictor import Predictor
from components.params import load_config
from flows.bench.load_generator import Planned, write_plan
from flows.bench.request_plan import mixed_plan, plain_plan, test_files
from flows.bench.scratch_server import ServerProcess, make_champion, scratch_registry, serving

_IMAGES = 240  # different ones in the plan
_POLL = ("--poll", "0.5")
_LONGEST = 300.0  # seconds of load at most while two reloads are waited for


@dataclass(frozen=True)
class ServerBenchSettings:
    """How much to measure.

    Attributes:
        seconds: of every turn.
        rounds: turns of every way to serve.
        connections: of the load generator.
        batch: images predicted together at most.
        device: auto, cpu, cuda or mps.
    """

    seconds: float = 5.0
    rounds: int = 3
    connections: int = 64
    batch: int = 32
    device: str = "auto"


@dataclass(frozen=True)
class _Bench:
    """Where the measurement happens: a scratch folder, the bundle, the images, and a Predictor of the same bundle."""

    folder: Path
    files: list[Path]
    predictor: Predictor
    settings: ServerBenchSettings

    def plan(self, name: str, plan: Sequence[Planned]) -> Path:
        """Write a plan into the scratch folder."""
        path = self.folder / f"{name}.json"
        write_plan(path, plan)
        return path


def bench_serve(root: Path, bundle: Path, settings: ServerBenchSettings) -> dict[str, Any]:
    """Measure a bundle's server.

    Args:
        root: a project that has been run; its test images are sent.
        bundle: folder of the bundle to serve.
        settings: how much to measure.

    Returns:
        The report; `failures` lists what may not happen: a lost request, a wrong answer, an undocumented 5xx, a server
        that does not end well.

    Raises:
        IntaglioError: the bundle or the project is not complete.
    """
    files = test_files(root, load_config(root / "params.yaml"), _IMAGES)
    with tempfile.TemporaryDirectory(prefix="intaglio-bench-") as scratch, ExitStack() as stack:
        bench = _Bench(Path(scratch), files, Predictor.load(bundle, settings.device), settings)
        plain = plain_plan(files, bench.predictor)
        project = bench.folder / "project"
        client = scratch_registry(project, [bundle, bundle])
        options = ("--device", settings.device, *_POLL)
        batched = stack.enter_context(
            serving(project, bench.folder / "batched.log", "--batch", str(settings.batch), *options)
        )
        single = stack.enter_context(serving(project, bench.folder / "single.log", "--batch", "1", *options))
        speed = _speed(bench, plain, batched, single)
        single.stop()
        load, exit_status = _reloads(bench, client, mixed_plan(plain), batched)
    report = {"settings": vars(settings), "speed": speed, "load": load, "exit_status": exit_status}
    return report | {"failures": failures_of(load, exit_status)}


def failures_of(load: dict[str, Any], exit_status: int) -> list[str]:
    """List what may not happen under load, one line each; empty if all is well."""
    undocumented = {
        status: count
        for status, count in load["statuses"].items()
        if status.startswith("5") and not (status == "503" and count == load["overloaded"])
    }
    faults = [
        (load["lost_requests"], f"{load['lost_requests']} requests were lost: {load['lost'][:3]}"),
        (load["wrong_answers"], f"{load['wrong_answers']} answers were wrong: {load['wrong'][:3]}"),
        (undocumented, f"undocumented errors of the server: {undocumented}"),
        (load["reloads"] < 2, f"the alias moved twice, but {load['reloads']} reloads were seen in time"),
        (exit_status, f"SIGTERM ended the server with status {exit_status}, not 0"),
    ]
    return [line for bad, line in faults if bad]


def _speed(
    bench: _Bench, plain: Sequence[Planned], batched: ServerProcess, single: ServerProcess
) -> list[dict[str, Any]]:
    """Measure four ways that take turns: medians over the rounds; `ratio` is to the direct Predictor."""
    path, many = bench.plan("plain", plain), bench.settings.connections
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "direct": lambda: _direct(bench),
        "served_batched": lambda: _served(batched.address(), path, many, bench.settings.seconds),
        "served_unbatched": lambda: _served(single.address(), path, many, bench.settings.seconds),
        "served_one_by_one": lambda: _served(batched.address(), path, 1, bench.settings.seconds),
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(bench.settings.rounds):
        for way, measure in ways.items():
            found[way].append(measure())
    rows = [{"way": way} | _medians(turns) for way, turns in found.items()]
    for row in rows:
        row["ratio"] = round(row["images_per_second"] / rows[0]["images_per_second"], 3)
        print(_line(row), flush=True)
    return rows


def _direct(bench: _Bench) -> dict[str, float]:
    """Decode and predict in this process, batch after batch: what a script without a server would do."""
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < bench.settings.seconds:
        first = images % len(bench.files)
        files = bench.files[first : first + bench.settings.batch]
        bench.predictor.predict([open_image(path, bench.predictor.limits) for path in files])
        images += len(files)
    return {"images_per_second": images / (time.perf_counter() - start)}


def _served(address: str, plan: Path, connections: int, seconds: float) -> dict[str, float]:
    generator = _start_load(address, plan, connections, seconds)
    report = _report(generator)
    return {
        "images_per_second": report["images"] / report["wall_seconds"],
        **{name: report[name] for name in ("p50_ms", "p95_ms", "p99_ms")},
    }


def _start_load(address: str, plan: Path, connections: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.bench.load_generator", address, str(plan), str(connections), str(seconds)]
    generator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert generator.stdout is not None
    generator.stdout.readline()  # its imports take a while on a busy machine; now it sends
    return generator


def _report(generator: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the load generator, and sum up its report."""
    assert generator.stdout is not None
    text = generator.stdout.read()
    if generator.wait():
        raise IntaglioError(f"the load generator ended with status {generator.returncode}")
    report: dict[str, Any] = json.loads(text)
    milliseconds = np.quantile(report.pop("seconds") or [np.nan], (0.5, 0.95, 0.99)) * 1e3
    report |= dict(zip(("p50_ms", "p95_ms", "p99_ms"), np.round(milliseconds, 2).tolist(), strict=True))
    requests = sum(report["statuses"].values())
    return report | {
        "requests": requests,
        "requests_per_second": round(requests / report["wall_seconds"], 1),
        "lost_requests": len(report["lost"]),
        "wrong_answers": len(report["wrong"]),
    }


def _reloads(
    bench: _Bench, client: MlflowClient, plan: Sequence[Planned], server: ServerProcess
) -> tuple[dict[str, Any], int]:
    """Load with broken images among good ones while the alias moves to version 2 and back; then SIGTERM."""
    address = server.address()
    connections = bench.settings.connections
    generator = _start_load(address, bench.plan("mixed", plan), connections, _LONGEST)
    assert generator.stdin is not None
    time.sleep(bench.settings.seconds / 2)
    deadline, reloads = time.monotonic() + 0.8 * _LONGEST, []
    for number in (2, 1):
        make_champion(client, number)
        start = time.monotonic()
        if not _until_served(address, str(number), deadline):
            break
        reloads.append(round(time.monotonic() - start, 2))
        time.sleep(bench.settings.seconds / 2)
    generator.stdin.close()
    report = _report(generator)
    report |= {"reloads": len(reloads), "reload_seconds": reloads}
    print(_load_line(report), flush=True)
    return report, server.stop()


def _until_served(address: str, version: str, deadline: float) -> bool:
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
            if json.load(answer)["model_version"] == version:
                return True
        time.sleep(0.1)
    return False


def _medians(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: round(statistics.median(turn[name] for turn in turns), 2) for name in turns[0]}


def _line(row: dict[str, Any]) -> str:
    times = f", p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms" if "p50_ms" in row else ""
    return f"{row['way']:<18} {row['images_per_second']:8.1f} images/s, {row['ratio']:.2f} of direct{times}"


def _load_line(report: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(report["statuses"].items()))
    versions = dict(sorted(report["versions"].items()))
    return (
        f"{report['requests']} requests, {report['requests_per_second']:.1f} a second ({counts}); p50 "
        f"{report['p50_ms']:.0f} ms, p95 {report['p95_ms']:.0f} ms, p99 {report['p99_ms']:.0f} ms; lost "
        f"{report['lost_requests']}, wrong {report['wrong_answers']}; versions {versions}"
    )
