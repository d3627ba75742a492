"""Downloading pinned wheels: what pip says becomes one clear error, and content is never trusted."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from components.data import wheels
from components.errors import IntaglioError, TransientError

CONTENT = b"a wheel"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, returncode: int = 0, stderr: str = "", wheels: int = 1
) -> list[list[str]]:
    """Put a stand-in for pip in place; returns the list of commands that it will be asked to run."""
    commands: list[list[str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        assert Path(env["TMPDIR"]) == folder  # nothing of a killed pip lies anywhere else
        for number in range(wheels if returncode == 0 else 0):
            (folder / f"thing-{number}-py3-none-any.whl").write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_download_returns_the_verified_wheel_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_pip(monkeypatch)
    wheel = wheels.download("thing==1.0", SHA256, tmp_path / "new")
    assert wheel.read_bytes() == CONTENT
    assert list((tmp_path / "new").iterdir()) == [wheel]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(commands[0])


def test_content_is_verified_even_if_pip_accepted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch)
    with pytest.raises(IntaglioError, match=rf"sha256 is {SHA256}, expected {'0' * 64}"):
        wheels.download("thing==1.0", "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "requirement", ["thing", "thing>=1", "thing==1.0\n--index-url=x", "-e .", "thing==1 ; x", "a b==1"]
)
def test_only_pinned_names_reach_pip(requirement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_pip(monkeypatch)
    with pytest.raises(IntaglioError, match="expected name==version"):
        wheels.download(requirement, SHA256, tmp_path)
    assert commands == []


@pytest.mark.parametrize("sha256", ["", "0" * 63, "G" * 64, SHA256.upper()])
def test_malformed_hashes_are_refused(sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch)
    with pytest.raises(IntaglioError, match="64 lower-case hex digits"):
        wheels.download("thing==1.0", sha256, tmp_path)


@pytest.mark.parametrize(
    "stderr",
    [
        "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'\nERROR: No match",
        "ERROR: HTTP error 503 while getting thing",
        "ERROR: Exception:\nReadTimeoutError: read timed out",
    ],
)
def test_network_faults_are_transient(stderr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(TransientError, match=r"thing==1\.0: the registry could not be reached"):
        wheels.download("thing==1.0", SHA256, tmp_path)


def test_a_dead_download_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TransientError, match="no download after"):
        wheels.download("thing==1.0", SHA256, tmp_path)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "does not have the pinned sha256",
        ),
        ("ERROR: No matching distribution found for thing==9", "No matching distribution found"),
        ("", "no message"),
    ],
)
def test_other_faults_are_permanent(
    stderr: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(IntaglioError, match=expected) as caught:
        wheels.download("thing==1.0", SHA256, tmp_path)
    assert not isinstance(caught.value, TransientError)


def test_addresses_never_reach_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, returncode=1, stderr="ERROR: cannot use https://user:secret@registry/simple/ today")
    with pytest.raises(IntaglioError) as caught:
        wheels.download("thing==1.0", SHA256, tmp_path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_wheel_is_expected(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, wheels=count)
    with pytest.raises(IntaglioError, match=f"pip delivered {count} wheels"):
        wheels.download("thing==1.0", SHA256, tmp_path)
