"""Who runs: read from /proc, so that a test can tell what a kill has left behind."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Every process below one, wherever its group, parents before their children."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for parent in found:
        found.extend(child for child, of in parents.items() if of == parent)
    return found[1:]


def at_work_in(root: Path) -> dict[int, str]:
    """Command lines of the living processes whose current folder is `root` or below."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            folder = (process / "cwd").readlink()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if state != "Z" and folder.is_relative_to(root):
            found[int(process.name)] = words.strip()
    return found


def left_after(root: Path, seconds: float) -> list[str]:
    """The command lines of those that still work in `root` after that many seconds: orphans."""
    deadline = time.monotonic() + seconds
    while (found := at_work_in(root)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(found.values())


def twice_at_work(root: Path) -> list[str]:
    """The stages at which more than one process works at this moment."""
    lines = [line.split() for line in at_work_in(root).values()]
    stages = [
        " ".join(words[3:])
        for words in lines
        if words[1:3] == ["-m", "components.stages"] and Path(words[0]).name.startswith("python")  # not DVC's shell
    ]
    return [stage for stage, count in Counter(stages).items() if count > 1]
