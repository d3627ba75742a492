"""The pages lead: every command of the tutorials and the README runs, in this order, in one tiny project.

What a page shows of the default stream is true of the tiny one too: its images of the task `pixels` are a part of the
default stream's, under the same names.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.system.tiny_project import (
    PARAMS,
    REPOSITORY,
    lay_out_tiny_project,
    users_environment,
    write_negative_digits,
)

PAGES = ("docs/tutorial/first-run.md", "docs/tutorial/own-images.md", "README.md")
SHOWN_ONLY = {"text", "mermaid"}  # the languages of blocks that are no commands
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 900  # for one page: two minutes of work, on a machine that may be many times too busy

# A server of a page runs in the background until the page ends; the next command waits for the words with which it is
# ready. A schedule is ended at once: nothing more is asked of it.
SERVERS = {"intaglio serve-schedule": "serving continual_finetuning", "intaglio serve": "ready: version"}
PRELUDE = """
set -euo pipefail
servers=()
trap '[ -z "${servers[*]}" ] || { kill "${servers[@]}"; wait "${servers[@]}" || true; }' EXIT
make() { case "$1" in run) intaglio run ;; test) ;; *) echo "make $1: no page may ask for it" >&2; return 2 ;; esac; }
curl() { command curl --silent --show-error --fail-with-body "$@"; }
in_background() {
    local ready=$1 log; log=$(mktemp); shift
    "$@" >"$log" 2>&1 & servers+=($!)
    grep -q "$ready" < <(tail --pid=$! -n +1 -f "$log") || { cat "$log"; return 1; }
}
end_last() { kill "${servers[-1]}"; wait "${servers[-1]}" || true; unset 'servers[-1]'; }
set -x
"""


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return BLOCK.findall((REPOSITORY / page).read_text())


def script_of(page: str, port: int) -> str:
    """All commands of a page as one script, so that `cd`, `source` and variables last from block to block."""
    parts = [PRELUDE]
    for language, body in blocks_of(page):
        if language == "bash":
            parts += [_line(line, port) for line in body.splitlines()]
        elif language == "python":
            parts += ["python - <<'END_OF_BLOCK'", body.rstrip("\n"), "END_OF_BLOCK"]
    return "\n".join(parts).replace("localhost:8080", f"localhost:{port}")


def _line(line: str, port: int) -> str:
    for command, ready in SERVERS.items():
        if re.match(rf"{command}\b(?!-)", line):
            schedule = command.endswith("schedule")
            addressed = line if schedule else line.replace(command, f"{command} --port {port}", 1)
            ended = "\nend_last" if schedule else ""
            return f"in_background {shlex.quote(ready)} {addressed}{ended}"
    return line


@dataclass(frozen=True)
class Reader:
    """A reader with a home folder of images, at a terminal in a project in which nothing has run."""

    root: Path
    home: Path

    def follows(self, page: str) -> tuple[int | None, str]:
        """Run the commands of a page up to the first that fails; return its status (None: it hung) and the screen."""
        script, screen = self.home / "page.sh", self.home / "screen.txt"
        script.write_text(script_of(page, free_port()))
        env = users_environment() | {
            "HOME": str(self.home),
            "PATH": os.pathsep.join([str(self.home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "200",
        }
        with screen.open("w") as shown:
            running = subprocess.Popen(
                ["bash", str(script)],
                cwd=self.root,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=shown,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = running.wait(SECONDS)
            except subprocess.TimeoutExpired:
                status = None
                os.killpg(running.pid, signal.SIGTERM)  # the page's servers too
                running.wait()
        return status, screen.read_text()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    root, home = folder / "intaglio", folder / "home"
    lay_out_tiny_project(root)
    # One task to begin with: the tutorial adds the next one, and the README one more.
    kept = [line for line in PARAMS.splitlines(keepends=True) if not line.strip().startswith("photos:")]
    (root / "params.yaml").write_text("".join(kept))
    write_negative_digits({0: home / "images/labels/zero", 1: home / "images/labels/one"})
    shutil.copytree(home / "images/labels/zero", home / "inbox")
    Image.open(next((root / "photos/temple").iterdir())).save(root / "photo.jpg")
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/activate").touch()  # `source .venv/bin/activate`: the tests' own environment is active already
    command = home / "bin/intaglio"
    command.parent.mkdir()
    python = shlex.quote(sys.executable)
    command.write_text(f"#!/bin/sh\nexec {python} -c 'from flows.cli import main; main()' \"$@\"\n")
    command.chmod(0o755)
    yield Reader(root, home)
    shutil.rmtree(folder)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run_or_marked_as_shown_only(page: str) -> None:
    languages = [language for language, _ in blocks_of(page)]
    assert set(languages) <= {"bash", "python"} | SHOWN_ONLY
    assert languages.count("bash") >= 3
    assert (REPOSITORY / page).read_text().count("```") == 2 * len(languages)  # no block escaped the pattern


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, reader: Reader) -> None:
    """One after the other: each page goes on with the project that the page before left."""
    status, screen = reader.follows(page)
    assert status == 0, screen[-6000:]
    assert "Traceback" not in screen
