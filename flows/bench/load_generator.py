"""A load generator: many connections in one process, every answer compared with the one expected.

    python -m flows.bench.load_generator ADDRESS REQUESTS.json CONNECTIONS SECONDS

It ends after SECONDS, or when its standard input is closed, and prints a line when it starts and a Report as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from components.io import read_json, write_json

_TIMEOUT = 60.0  # seconds without an answer after which a request is lost
_PAUSE = 0.05  # after a documented overload


@dataclass(frozen=True)
class Planned:
    """A request and the expected answer.

    Attributes:
        path: of the URL.
        content_type: of the body.
        body: of the request.
        status: expected of the answer.
        answers: (task, label) of every image in the request; (None, None) for a broken one.
    """

    path: str
    content_type: str
    body: bytes
    status: int
    answers: tuple[tuple[str | None, str | None], ...]


@dataclass
class Report:
    """What came back.

    Attributes:
        statuses: number of answers of each HTTP status.
        versions: number of answers of each version of the model.
        overloaded: answers with status 503 and a time to retry.
        images: in all answers.
        lost: requests without an answer, one line each.
        wrong: other answers than planned, one line each.
        seconds: of each request.
        wall_seconds: of the whole run.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    overloaded: int = 0
    images: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    wall_seconds: float = 0.0


def write_plan(path: Path, plan: Sequence[Planned]) -> None:
    """Write requests for `python -m flows.bench.load_generator`."""
    write_json(path, [asdict(planned) | {"body": b64encode(planned.body).decode()} for planned in plan])


def read_plan(path: Path) -> list[Planned]:
    """Read requests that `write_plan` wrote."""
    return [
        Planned(
            row["path"],
            row["content_type"],
            b64decode(row["body"]),
            row["status"],
            tuple((task, label) for task, label in row["answers"]),
        )
        for row in read_json(path)
    ]


async def load(address: str, plan: Sequence[Planned], connections: int, stop: asyncio.Event) -> Report:
    """Send the requests of a plan over and over, until `stop`.

    Args:
        address: of the server.
        plan: the requests.
        connections: open at the same time; each sends one request at a time.
        stop: ends the load when it is set.
    """
    report, turns, start = Report(), itertools.cycle(plan), time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    async with aiohttp.ClientSession(address, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_one_connection(session, turns, stop, report) for _ in range(connections)))
    report.wall_seconds = time.perf_counter() - start
    return report


async def _one_connection(
    session: aiohttp.ClientSession, turns: Iterator[Planned], stop: asyncio.Event, report: Report
) -> None:
    while not stop.is_set():
        planned, start = next(turns), time.perf_counter()
        headers = {"Content-Type": planned.content_type}
        try:
            async with session.post(planned.path, data=planned.body, headers=headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            report.lost.append(f"{planned.path}: {type(error).__name__}: {error}")
            continue
        report.seconds.append(time.perf_counter() - start)
        report.statuses[str(response.status)] += 1
        if response.status == 503 and "Retry-After" in response.headers:
            report.overloaded += 1
            await asyncio.sleep(_PAUSE)
            continue
        report.versions[response.headers.get("intaglio-model-version", "none")] += 1
        report.images += len(planned.answers)
        if fault := _fault(planned, response.status, body):
            report.wrong.append(fault)


def _fault(planned: Planned, status: int, body: bytes) -> str:
    """Describe how an answer differs from the plan; "" if it does not."""
    try:
        answers = _answers(json.loads(body))
    except (ValueError, TypeError, AttributeError):
        answers = ()
    if (status, answers) == (planned.status, planned.answers):
        return ""
    expected = f"{planned.status} {planned.answers}"
    return f"{planned.path} ({planned.content_type[:30]}): expected {expected}, got {status} {body[:200]!r}"


def _answers(value: dict[str, Any]) -> tuple[tuple[str | None, str | None], ...]:
    rows = value.get("predictions", [value])
    return tuple((row.get("task"), row.get("label")) for row in rows)


async def _main(address: str, plan: Path, connections: int, seconds: float) -> Report:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.call_later(seconds, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    print("started", flush=True)
    return await load(address, read_plan(plan), connections, stop)


if __name__ == "__main__":
    _report = asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
    print(json.dumps(vars(_report)), flush=True)
