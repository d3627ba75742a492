"""What a week of a long stream cost, and whether anything changed that a task had left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from components.bench.process_tree import MeasuredCommand
from components.bench.weeks import COMPARED_AT, Week
from components.errors import IntaglioError
from components.io import read_json, sha256_file
from flows.planning.timings import read_timings

LEFT = ("models/modules", "models/signatures", "models/records")
_RAN = re.compile(r"\] (?P<stage>\S+) ran \(")
_CHAMPION = re.compile(r"passed its gates and is the champion now|version \d+ is the champion$", re.MULTILINE)
_COMPARED = 3  # weeks at each end whose median is compared, where there are that many of equal size
Row = dict[str, Any]


def left_by_tasks(root: Path) -> dict[str, str]:
    """Hash every file that tasks and updates left, by its path in the project; the backbone's own are left out."""
    files = [path for folder in LEFT for path in (root / folder).glob("*/**/*") if path.is_file()]
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(files)}


def check_untouched(before: Mapping[str, str], now: Mapping[str, str], week: Week) -> None:
    """Check that nothing changed that was there before a week: an update leaves files of its own.

    Args:
        before: path -> sha256.
        now: likewise, after the week.
        week: for the message.

    Raises:
        IntaglioError: a file changed or is gone.
    """
    if changed := [path for path in before if now.get(path) != before[path]]:
        named = ", ".join(f"{path} ({'changed' if path in now else 'gone'})" for path in changed[:5])
        raise IntaglioError(f"week {week.number}, {week.event} {week.task}: {len(changed)} files differ: {named}")


def week_row(root: Path, week: Week, commands: Sequence[MeasuredCommand], read: int, kept: int) -> Row:
    """Describe a week that ended.

    Args:
        root: the project's folder.
        week: what happened.
        commands: those of the user in this week; the last one is the run.
        read: images that were in the project, each of which a stage reads.
        kept: bytes of all that tasks have left so far.

    Raises:
        IntaglioError: the run did not end with its version as champion.
    """
    run = commands[-1]
    if not _CHAMPION.search(run.output):
        raise IntaglioError(f"week {week.number}: no champion at the end of the run:\n{run.output[-2000:]}")
    metrics = read_json(root / "reports/metrics.json")
    return {
        "week": week.number,
        "event": week.event,
        "seconds": round(sum(command.seconds for command in commands), 2),
        "stages": stage_seconds(run.output, read_timings(root)),
        "images_read": read,
        "bytes_kept": kept,
        "peak_memory_mb": round(max(command.peak_memory_mb for command in commands), 1),
        "accuracy": metrics["accuracy_final"],
        "label_accuracy": metrics["label_accuracy"],
        "forgetting": metrics["forgetting"],
    }


def stage_seconds(output: str, timings: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each stage that a run executed, by what it printed and what the project noted."""
    return {stage: timings[stage] for stage in _RAN.findall(output) if stage in timings}


def ratios(rows: Sequence[Row], weeks: Sequence[Week], resumed: set[int]) -> dict[str, float | None]:
    """Compare the last weeks with early ones: seconds, and peak memory.

    Args:
        rows: of the weeks that were measured.
        weeks: all that were planned.
        resumed: numbers of weeks that a kill interrupted, whose seconds are not whole.

    Returns:
        Medians of up to three weeks at each end over each other; None where a stream is too short. At T = 2 a task of
        the same source and size is added as at the end.
    """
    by_week = {row["week"]: row for row in rows if row["week"] not in resumed}
    adds = [by_week[week.number] for week in weeks if week.event == "add" and week.number in by_week]
    ends = min(_COMPARED, (len(adds) - 1) // 2)
    early, late = (adds[1 : 1 + ends], adds[len(adds) - ends :]) if ends > 0 else ([], [])
    idle = [by_week[number] for number in _idle_weeks(weeks) if number in by_week]
    idle_early, idle_late = (idle[:1], idle[-1:]) if len(idle) > 1 else ([], [])
    return {
        "add_at_end_to_add_at_2": _ratio(late, early, "seconds"),
        f"nothing_at_end_to_nothing_at_{COMPARED_AT}": _ratio(idle_late, idle_early, "seconds"),
        "memory_add_at_end_to_add_at_2": _ratio(late, early, "peak_memory_mb"),
        f"memory_nothing_at_end_to_nothing_at_{COMPARED_AT}": _ratio(idle_late, idle_early, "peak_memory_mb"),
    }


def _idle_weeks(weeks: Sequence[Week]) -> Iterator[int]:
    """Yield the weeks without work from the sixth task on; of a shorter stream, after the last."""
    added, total = 0, sum(week.event == "add" for week in weeks)
    for week in weeks:
        added += week.event == "add"
        if week.event == "nothing" and added >= min(COMPARED_AT, total):
            yield week.number


def _ratio(late: Sequence[Row], early: Sequence[Row], key: str) -> float | None:
    if not late or not early:
        return None
    return round(float(median(row[key] for row in late) / median(row[key] for row in early)), 4)
