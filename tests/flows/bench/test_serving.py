"""`intaglio bench serve`: one small run for real, and that it would notice what may not happen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows.bench.load_generator import Planned, Report, load
from flows.bench.serving import ServerBenchSettings, bench_serve, failures_of

GOOD: dict[str, Any] = {
    "statuses": {"200": 90, "422": 5, "503": 5},
    "overloaded": 5,
    "lost_requests": 0,
    "lost": [],
    "wrong_answers": 0,
    "wrong": [],
    "reloads": 2,
}


def test_a_small_run(learned_template: Path) -> None:
    settings = ServerBenchSettings(seconds=0.5, rounds=1, connections=16, batch=8, device="cpu")
    report = bench_serve(learned_template, learned_template / "models" / "bundle", settings)
    assert report["failures"] == []
    assert [row["way"] for row in report["speed"]] == [
        "direct",
        "served_batched",
        "served_unbatched",
        "served_one_by_one",
    ]
    assert all(row["images_per_second"] > 0 for row in report["speed"])
    assert set(report["load"]["versions"]) == {"1", "2"}
    assert report["load"]["p50_ms"] <= report["load"]["p99_ms"]


@pytest.mark.parametrize(
    ("change", "exit_status", "message"),
    [
        ({}, 0, None),
        ({"lost_requests": 1, "lost": ["gone"]}, 0, "1 requests were lost: \\['gone'\\]"),
        ({"wrong_answers": 2}, 0, "2 answers were wrong"),
        ({"statuses": {"500": 1}}, 0, "undocumented errors of the server: {'500': 1}"),
        ({"overloaded": 4}, 0, "undocumented errors of the server: {'503': 5}"),
        ({"reloads": 1}, 0, "but 1 reloads"),
        ({}, 143, "status 143"),
    ],
)
def test_what_fails_a_run(change: dict[str, Any], exit_status: int, message: str | None) -> None:
    found = failures_of(GOOD | change, exit_status)
    assert len(found) == (message is not None)
    if message:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(found[0])


async def _against(answers: list[bytes]) -> Report:
    """The load generator against a server that gives these answers in turn, one a connection, and then hangs up."""
    stop, left = asyncio.Event(), list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
        writer.write(left.pop(0) if left else b"")
        if not left:
            stop.set()
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    plan = [Planned("/predict", "image/png", b"x", 200, (("a", "b"),))]
    async with server:
        return await load(f"http://{host}:{port}", plan, 1, stop)


def _http(status: str, body: bytes, header: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{header}\r\n"
    return head.encode() + body


def test_the_load_generator_counts_what_is_lost_wrong_and_overloaded() -> None:
    good = b'{"task": "a", "label": "b"}'
    report = asyncio.run(
        _against(
            [
                _http("200 OK", good, "intaglio-model-version: 7\r\n"),
                b"",
                _http("200 OK", b'{"task": "a", "label": "c"}'),
                _http("503 Service Unavailable", b"{}", "Retry-After: 1\r\n"),
                _http("500 Internal Server Error", b"no JSON"),
                b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut off",
            ]
        )
    )
    assert dict(report.statuses) == {"200": 2, "503": 1, "500": 1}
    assert dict(report.versions) == {"7": 1, "none": 2}
    assert (len(report.lost), len(report.wrong), report.overloaded) == (2, 2, 1)
