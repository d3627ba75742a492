"""`intaglio bench stream`: a real project lives for many weeks, and every week is measured.

    images of the week --> task add | update | retire --> intaglio run, to promotion --> the images are deleted

So no stage can open an image of another task: there is none. What tasks left is hashed every week, and the bench fails
where a byte of it changes. Half-way, later software is installed, in which the revision of every stage is raised.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.bench.gpu import device_name
from components.bench.machine import provenance
from components.bench.process_tree import MeasuredCommand
from components.bench.weeks import Week, plan_weeks
from components.errors import IntaglioError
from components.io import atomic_folder, read_json, write_json, write_text
from components.lab.stream import load_stream
from components.params import load_config
from components.vision.backbone import choose_device
from flows.bench.quality import laboratory
from flows.bench.stream_project import StreamProject, make_project
from flows.bench.stream_rivals import StreamRivals
from flows.bench.week_images import SourceImages, find_images, write_batch
from flows.bench.week_rows import Row, check_untouched, left_by_tasks, ratios, week_row

NOTES = (
    "The gates are open, so that every version is promoted. Seconds: the week's commands from start to promotion. "
    "Images read: those in the project; all earlier ones are deleted. Bytes kept: modules, signatures and records of "
    "all tasks. Memory: resident, of all processes together. The week `upgrade` raises the revision of every stage."
)
_EVERY = 10  # weeks from one comparison with the rivals to the next


@dataclass(frozen=True)
class StreamBenchSettings:
    """What the command line asked for.

    Attributes:
        tasks: number of tasks to add.
        seed: of the weeks.
        stream: name of a stream of the laboratory, or the path of a YAML file, whose sources are used.
        data: folders of zips or image folders.
        settings: other values of params.yaml.
        rivals: whether to compare with other ways to learn.
        archive: whether tasks of earlier weeks are archived at the next change.
    """

    tasks: int
    seed: int
    stream: str
    data: tuple[Path, ...]
    settings: tuple[str, ...]
    rivals: bool
    archive: bool


def bench_stream(
    root: Path, asked: StreamBenchSettings, folder: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Live through all weeks; those that were measured below `folder` already are kept.

    Args:
        root: the user's project, whose settings are used; nothing in it changes.
        asked: number of tasks, seed and sources.
        folder: where the project of the bench lives.
        report: receives the figures after every week.

    Returns:
        The figures: device, weeks, rivals, ratios, and what made them.

    Raises:
        IntaglioError: the images are too few, `folder` holds another bench, a command failed, no version was promoted,
            or something that a task had left changed.
    """
    lab = laboratory(root, asked.data, asked.settings)
    images = find_images(load_stream(asked.stream), lab.data, lab.config.data.max_bytes)
    weeks = plan_weeks(images.supply, asked.tasks, asked.seed)
    _check_same_bench(folder, asked, weeks)
    life = _Life(make_project(folder, root / "params.yaml", asked.settings), images, asked.archive)
    rivals = StreamRivals(life.project.root, folder / "rivals", images, folder / "rivals.json")
    origin, device = (
        provenance(__name__.replace("flows", "components").rpartition(".")[0] + ".weeks"),
        lab.config.device,
    )
    found: dict[str, Any] = {"device": _device(device, origin.pop("machine"))} | origin | {"notes": NOTES}
    for line in _opening(images, weeks):
        print(line, flush=True)
    for week in weeks:
        if week.number > len(life.rows):
            life.live(week)
            print(_line(life.rows[-1], week), flush=True)
        if asked.rivals and (week.number % _EVERY == 0 or week is weeks[-1]):
            rivals.compare(weeks[: week.number], is_present=week.number == len(life.rows))
        if week.number == len(life.rows):
            compared = ratios(life.rows, weeks, life.resumed)
            found |= {"weeks": life.rows, "rivals": rivals.rows, "ratios": compared}
            report(found)
    return found


class _Life:
    """The weeks of one project, as far as they were lived; FOLDER/weeks.jsonl has a line for each."""

    def __init__(self, project: StreamProject, images: SourceImages, archive: bool) -> None:
        self.project, self.images, self.archive = project, images, archive
        self._file, self._state = project.folder / "weeks.jsonl", project.folder / "state.json"
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]
        state = read_json(self._state) if self._state.is_file() else {}
        self._begun, self._left = int(state.get("begun", 0)), dict(state.get("left", {}))
        self.resumed: set[int] = set(state.get("resumed", ()))

    def live(self, week: Week) -> None:
        """Live through a week: its command, a run to promotion, and the end of its images."""
        if self._begun == week.number:
            self.resumed.add(week.number)
        self._begun = week.number
        self._note()
        root, folder = self.project.root, self.project.root / "images" / f"week_{week.number:03}"
        if week.batch:
            with atomic_folder(folder) as temporary:
                write_batch(self.images, week.source, week.batch, temporary)
        commands = [*self._change(week, folder), self.project.types("run")]
        left = left_by_tasks(root)
        check_untouched(self._left, left, week)
        kept = sum((root / path).stat().st_size for path in left)
        self.rows.append(week_row(root, week, commands, week.images, kept))
        for gone in (root / "images", root / ".intaglio" / "trunk"):
            shutil.rmtree(gone, ignore_errors=True)
        self._left = left
        self._note()
        write_text(self._file, "".join(f"{json.dumps(row)}\n" for row in self.rows))

    def _change(self, week: Week, folder: Path) -> Iterator[MeasuredCommand]:
        """Type what a user types in a week; what a killed bench typed already is left out."""
        root, types = self.project.root, self.project.types
        config = load_config(root / "params.yaml", empty=True)
        if self.archive and week.event in ("add", "update", "retire"):
            changed = {*config.stream.tasks, *(update.task for update in config.stream.updates.values())}
            for task in sorted(changed - {week.task}, key=config.chain.index):
                yield types("task", "archive", task, "--delete-images")
        if week.event == "add" and week.task not in config.chain:
            yield types("task", "add", week.task, str(folder.relative_to(root)))
        known = {update.folder for update in config.updates.values()}
        if week.event == "update" and folder.relative_to(root).as_posix() not in known:
            yield types("task", "update", week.task, str(folder.relative_to(root)))
        if week.event == "retire":
            yield types("task", "retire", week.task)
        if week.event == "upgrade":
            self.project.install_later_version()
            yield types("init", "--upgrade", ".")

    def _note(self) -> None:
        write_json(self._state, {"begun": self._begun, "left": self._left, "resumed": sorted(self.resumed)})


def _check_same_bench(folder: Path, asked: StreamBenchSettings, weeks: Sequence[Week]) -> None:
    """Refuse a folder whose weeks are those of another seed, number of tasks or set of images."""
    plan = [[week.event, week.task, [[*part.train, *part.test] for part in week.batch]] for week in weeks]
    wanted = {"settings": sorted(asked.settings), "archive": asked.archive, "plan": plan}
    known = folder / "bench.json"
    if not known.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(known, wanted)
    elif read_json(known) != wanted:
        raise IntaglioError(f"{folder}: holds the weeks of another bench; name another folder with --keep")


def _device(wanted: str, machine: str) -> str:
    device = choose_device(wanted)
    return machine if device.type == "cpu" else f"{machine}, {device_name(device)}"


def _opening(images: SourceImages, weeks: Sequence[Week]) -> Iterator[str]:
    events = [week.event for week in weeks]
    counts = ", ".join(f"{events.count(event)} {event}" for event in dict.fromkeys(events))
    yield f"{len(weeks)} weeks: {counts}; {sum(week.images for week in weeks)} images"
    if images.left_out:
        yield f"left out, in no data folder: {', '.join(images.left_out)}"
    yield NOTES


def _line(row: Row, week: Week) -> str:
    slowest = sorted(row["stages"].items(), key=lambda stage: -stage[1])[:3]
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in slowest) or "no stage"
    return (
        f"week {week.number} {f'{week.event} {week.task}'.strip()}: {row['seconds']:.1f} s ({stages}), "
        f"{row['images_read']} images, {row['bytes_kept'] / 1e6:.1f} MB kept, {row['peak_memory_mb']:.0f} MB memory, "
        f"accuracy {row['accuracy']:.3f}"
    )
