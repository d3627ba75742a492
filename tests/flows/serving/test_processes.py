"""`intaglio serve` as a process of its own: load while the alias moves, overload, hang-ups, and its end."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flows.bench.load_generator import Planned, Report, load
from flows.bench.scratch_server import ServerProcess, make_champion, serving
from flows.cli.app import run_command
from tests.flows.serving.conftest import DAMAGED, OTHER, WHOLE, World

CPU = ("--device", "cpu")
PATIENCE = 60.0  # seconds


def get(address: str, route: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address + route, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def answers(address: str) -> bool:
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


def health(address: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(address, "/health")[1])
    return found


def figure(address: str, name: str) -> float:
    lines = get(address, "/metrics")[1].splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def under_load(address: str, plan: list[Planned], connections: int) -> Iterator[Report]:
    """The load generator in a thread; the report is complete after the block."""
    report, stop, loop = Report(), asyncio.Event(), asyncio.new_event_loop()

    def run() -> None:
        found = loop.run_until_complete(load(address, plan, connections, stop))
        vars(report).update(vars(found))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield report
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)
        loop.close()


def served_by(report_address: str, version: int) -> Callable[[], bool]:
    return lambda: health(report_address)["model_version"] == str(version)


@pytest.fixture(scope="module")
def server(world_template: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, World]]:
    """One server for the tests that leave it as it was; its registry is theirs alone."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(world_template.root, folder / "project", symlinks=True)
    world = World(folder / "project", world_template.bundle, world_template.plain, world_template.mixed)
    options = ("--poll", "0.2", "--queue", "96", "--max-body-mb", "1", "--batch", "16")
    with serving(world.root, folder / "log", *CPU, *options) as child:
        yield child, world


def test_no_request_is_lost_while_the_alias_moves_twice_and_once_to_a_damaged_version(
    server: tuple[ServerProcess, World],
) -> None:
    (child, world), address = server, server[0].address()
    with under_load(address, world.mixed, 32) as report:
        for version in (OTHER, DAMAGED, WHOLE):
            before = int(health(address)["model_version"])
            make_champion(world.client, version)
            if version == DAMAGED:
                until(lambda: str(health(address)["trouble"]).startswith(f"version {DAMAGED}: "))
                found = health(address)
                assert (found["status"], found["model_version"]) == ("ready", str(before))
            else:
                until(served_by(address, version))
            time.sleep(0.5)
    assert (report.lost, report.wrong) == ([], [])
    assert set(report.statuses) == {"200", "422"}
    assert set(report.versions) == {str(WHOLE), str(OTHER)}
    assert sum(report.statuses.values()) > 100
    assert figure(address, "intaglio_batch_images_sum") > 2 * figure(address, "intaglio_batch_images_count")
    assert f"version {DAMAGED} cannot be served" in child.output()
    assert "Traceback" not in child.output()


def test_overload_is_a_503_with_a_time_to_retry(server: tuple[ServerProcess, World]) -> None:
    (_, world), address = server, server[0].address()
    many = json.dumps({"images": [b64encode(planned.body).decode() for planned in world.plain[:60]]}).encode()
    answers = tuple(planned.answers[0] for planned in world.plain[:60])
    plan = [Planned("/predict", "application/json", many, 200, answers)]
    with under_load(address, plan, 12) as report:
        until(lambda: figure(address, 'intaglio_requests_total{route="/predict",status="503"}') > 5)
    assert (report.lost, report.wrong) == ([], [])
    assert set(report.statuses) == {"200", "503"}
    assert report.statuses["503"] == report.overloaded
    assert get(address, "/health")[0] == 200
    until(lambda: figure(address, "intaglio_queue_images") == 0)


def connection_to(address: str) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    assert parts.hostname
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)


def test_a_body_larger_than_allowed_is_refused_also_in_chunks(server: tuple[ServerProcess, World]) -> None:
    connection = connection_to(server[0].address())
    chunk = b"x" * 65536
    for body in (chunk * 800, (chunk for _ in range(800))):
        connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        assert (answer.status, "larger than 1048576 bytes" in answer.read().decode()) == (413, True)


def test_clients_that_hang_up_leave_nothing_behind(server: tuple[ServerProcess, World]) -> None:
    (_, world), address = server, server[0].address()
    parts, body = urlsplit(address), world.plain[0].body
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    for sent in (b"", head.encode(), head.encode() + body[:50], head.encode() + body):
        for _ in range(20):
            with socket.create_connection((parts.hostname, parts.port)) as client:
                client.sendall(sent)
    until(lambda: figure(address, "intaglio_queue_images") == 0)
    with under_load(address, world.mixed, 4) as report:
        time.sleep(0.5)
    assert (report.lost, report.wrong, report.overloaded) == ([], [], 0)


def test_sigterm_under_load_drains_and_ends_with_0(world: World, tmp_path: Path) -> None:
    with serving(world.root, tmp_path / "log", *CPU, "--drain", "1.5") as child:
        address = child.address()
        idle = connection_to(address)
        idle.request("GET", "/health")
        assert idle.getresponse().read()
        with under_load(address, world.mixed, 16) as report:
            time.sleep(0.5)
            child.process.send_signal(signal.SIGTERM)
            until(lambda: get(address, "/health")[0] == 503)
            assert health(address)["status"] == "draining"
        # The load ended while the server still answered: what it had accepted, it answered.
        assert (report.lost, report.wrong, set(report.statuses)) == ([], [], {"200", "422"})
        assert child.process.wait(PATIENCE) == 0
        assert not answers(address)
    assert "Traceback" not in child.output()


@pytest.fixture
def own_process() -> Iterator[None]:
    """For a server in this very process: the tests' signals and logs are theirs again afterwards."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    loggers = [logging.getLogger(name) for name in ("flows.serving", "intaglio.access", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(("version", "message"), [(DAMAGED, f"error: version {DAMAGED}: "), (None, "no champion")])
def test_without_a_first_version_it_ends_with_an_error(
    world: World,
    version: int | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if version:
        make_champion(world.client, version)
    else:
        world.client.delete_registered_model_alias("intaglio", "champion")
    monkeypatch.chdir(world.root)
    assert run_command(["serve", "--port", "0", *CPU]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("own_process")
def test_an_address_that_is_taken(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run_command(["serve", "--port", port, "--bundle", str(world.bundle)]) == 1
    assert f"error: 127.0.0.1:{port}: cannot listen there" in capsys.readouterr().err


@pytest.mark.usefixtures("own_process")
def test_two_orders_to_stop_end_it_without_the_pause(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, seen = f"http://127.0.0.1:{port}", []

    def visit() -> None:
        until(lambda: answers(address) and health(address)["status"] == "ready")
        seen.append(get(address, "/model")[0])
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: health(address)["status"] == "draining")
        os.kill(os.getpid(), signal.SIGTERM)

    visitor, start = threading.Thread(target=visit), time.monotonic()
    visitor.start()
    options = ["--port", str(port), "--drain", "1000", "--access-log", "--bundle", str(world.bundle), *CPU]
    assert run_command(["serve", *options]) == 0
    visitor.join(PATIENCE)
    assert (seen, time.monotonic() - start < 500) == ([200], True)
    shown = capsys.readouterr()
    assert "ready: version bundle-" in shown.out
    assert '"path": "/model", "status": 200' in shown.err
