"""A long stream: the real thing for four weeks, and what happens around it with a pipeline that costs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.bench.process_tree import MeasuredCommand
from components.bench.weeks import ClassBatch, Week
from components.config import Update
from components.errors import IntaglioError
from components.io import write_arrays, write_json, write_text
from components.params import load_config
from components.vision.timm_import import create_model
from flows.bench import stream as bench
from flows.bench.stream import StreamBenchSettings, bench_stream
from flows.bench.stream_project import OPEN_GATES, StreamProject
from flows.bench.week_rows import ratios, stage_seconds
from flows.project.new_project import init_project
from flows.tasks.add_task import add_task
from flows.tasks.params_file import change_params, entries, update_entry
from flows.tasks.retire_task import retire_task
from tests.components.lab.conftest import digits_zip
from tests.system.tiny_project import PARAMS

KEYS = {
    "week", "event", "seconds", "stages", "images_read", "bytes_kept",
    "peak_memory_mb", "accuracy", "label_accuracy", "forgetting",
}  # fmt: skip
LEFT = "models/modules", "models/signatures", "models/records"
Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project with the settings of the tiny network, and a zip of nine digits."""
    root = tmp_path_factory.mktemp("home")
    write_text(root / "params.yaml", PARAMS)
    model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    write_arrays(root / "tiny.safetensors", {name: value.numpy() for name, value in model.state_dict().items()})
    write_text(root / "sources.yaml", "description: d\ntrain_images: 1000\ntasks:\n  digits: {source: digits}\n")
    (root / "zips").mkdir()
    digits_zip(root / "zips" / "digits.zip", per_class=60)
    return root


@pytest.fixture
def live(home: Path, tmp_path: Path) -> Bench:
    """Run the bench with some settings changed; the project stays in tmp_path/kept."""

    def run(**changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"tasks": 2, "seed": 0, "settings": (), "rivals": False, "archive": False} | changes
        asked = StreamBenchSettings(stream=str(home / "sources.yaml"), data=(home / "zips",), **given)
        reports: list[str] = []
        found = bench_stream(home, asked, tmp_path / "kept", lambda figures: reports.append(json.dumps(figures)))
        assert reports[-1] == json.dumps(found)
        return found

    return run


def test_four_weeks_of_a_real_project(live: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three, more = [f"digit {n}" for n in range(3)], ClassBatch("digit 1", (20, 30), (5, 8))
    task = "digits_1", "digits", tuple(ClassBatch(label, (0, 20), (0, 5)) for label in three)
    new = ClassBatch("digit 3", (0, 10), (0, 5))
    weeks = (
        Week(1, "add", *task),
        Week(2, "upgrade"),
        Week(3, "update", "digits_1", "digits", (more, new)),
        Week(4, "nothing"),
    )
    monkeypatch.setattr(bench, "plan_weeks", lambda *_: weeks)
    found = live(settings=("finetune.epochs=2",), rivals=True)
    first, upgrade, update, nothing = found["weeks"]
    kinds = [{name.partition("@")[0] for name in row["stages"]} for row in found["weeks"]]
    assert kinds[0] >= {"ingest", "validate", "finetune", "signature", "record", "evaluate", "report", "bundle"}
    assert kinds[1:] == [{"evaluate", "report", "bundle"}, {"update", "evaluate", "report", "bundle"}, set()]
    assert [row["images_read"] for row in found["weeks"]] == [75, 0, 28, 0]
    assert first["bytes_kept"] == upgrade["bytes_kept"] < update["bytes_kept"] == nothing["bytes_kept"]
    assert all(0 < row["accuracy"] <= row["label_accuracy"] <= 1 for row in found["weeks"])
    assert all(row["seconds"] > 0 and row["peak_memory_mb"] > 100 for row in found["weeks"])
    root = tmp_path / "kept" / "project"
    assert not (root / "images").exists()
    assert not (root / ".intaglio" / "trunk").exists()
    config = load_config(root / "params.yaml")
    assert config.finetune.epochs == 2
    assert config.gates.model_dump() == OPEN_GATES
    rivals = {row["rival"]: row for row in found["rivals"]}
    assert rivals.keys() == {"frozen_lda", "all_modules", "joint"}
    assert all(row["week"] == 4 and row["seconds"] >= 0 and row["how"] for row in rivals.values())
    assert rivals["joint"]["accuracy"] > 0.25


class Pipeline:
    """What `intaglio` does in a project, but for learning: it writes a file for each task, and figures."""

    def __init__(self) -> None:
        self.typed: list[str] = []
        self.before_run: Callable[[Path], object] = lambda root: None
        self.ending = "model intaglio: version 1 passed its gates and is the champion now\n"

    def types(self, project: StreamProject, *arguments: str, software: Path | None = None) -> MeasuredCommand:
        self.typed.append(" ".join(arguments))
        root = project.root
        match arguments:
            case ("init", "."):
                init_project(root)
            case ("task", "add", name, folder):
                add_task(root, name, root / folder)
            case ("task", "update", task, folder):
                update = Update(folder=folder, task=task, previous=task)
                change_params(
                    root / "params.yaml",
                    lambda text: entries(text.section("stream"), "updates").update({f"{task}.1": update_entry(update)}),
                )
            case ("task", "retire", name):
                retire_task(root, name)
            case ("run",):
                self.before_run(root)
                self._run(root)
        return MeasuredCommand(0, f"[1/2 done, 1 s] evaluate ran (1 s)\n{self.ending}", 1.0, 100.0)

    def _run(self, root: Path) -> None:
        config = load_config(root / "params.yaml")
        for name in (*config.chain, *config.updates):
            for folder in LEFT:
                if not (root / folder / name / "it").exists():
                    write_text(root / folder / name / "it", name)
        write_json(root / ".intaglio/timings.json", {"evaluate": 0.5, "report": 0.7})
        figures = {"accuracy_final": 0.5, "label_accuracy": 0.6, "forgetting": 0.0}
        write_json(root / "reports/metrics.json", figures)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline that learns nothing, in place of the real one."""
    found = Pipeline()
    monkeypatch.setattr(StreamProject, "types", lambda project, *given, **own: found.types(project, *given, **own))
    return found


def test_every_event_is_typed_as_a_user_would(live: Bench, pipeline: Pipeline, tmp_path: Path) -> None:
    there: list[int] = []
    pipeline.before_run = lambda root: there.append(len(list((root / "images").rglob("*.png"))))
    found = live()
    events = [row["event"] for row in found["weeks"]]
    assert events == ["add", "upgrade", "add", "nothing", "update", "retire", "nothing"]
    words = [" ".join(command.split()[:2]) for command in pipeline.typed]
    assert words[:5] == ["init .", "task add", "run", "init --upgrade", "run"]
    assert words[5:] == ["task add", "run", "run", "task update", "run", "task retire", "run", "run"]
    assert all(row.keys() == KEYS for row in found["weeks"])
    assert there == [row["images_read"] for row in found["weeks"]]  # the images of the week, and no other
    assert found["weeks"][0]["seconds"] == 2.0
    assert found["weeks"][0]["stages"] == {"evaluate": 0.5}
    revisions = [(tmp_path / "kept" / f"software-{n}" / "components/revisions.py").read_text() for n in (1, 2)]
    assert '"evaluate": 2' in revisions[0]
    assert '"evaluate": 3' in revisions[1]
    template = (tmp_path / "kept/software-2/flows/project/template/dvc.yaml").read_text()
    assert "stages evaluate --revision 3" in template


def test_a_killed_bench_goes_on(live: Bench, pipeline: Pipeline) -> None:
    def kill(root: Path) -> None:
        if len(load_config(root / "params.yaml").chain) == 2:
            raise KeyboardInterrupt

    pipeline.before_run = kill
    with pytest.raises(KeyboardInterrupt):
        live()
    pipeline.before_run = lambda root: None
    found = live()
    assert [row["week"] for row in found["weeks"]] == list(range(1, 8))
    assert sum(command.startswith("task add") for command in pipeline.typed) == 2
    assert sum(command == "init ." for command in pipeline.typed) == 1
    typed = len(pipeline.typed)
    assert live()["weeks"] == found["weeks"]  # and once more, with nothing left to do
    assert len(pipeline.typed) == typed


def test_a_changed_byte_of_a_task_fails(live: Bench, pipeline: Pipeline) -> None:
    def change(root: Path) -> None:
        if (left := root / "models/modules/digits_1/it").is_file():
            left.write_text("other")

    pipeline.before_run = change
    with pytest.raises(
        IntaglioError, match=r"week 2, upgrade .* 1 files differ: models/modules/digits_1/it \(changed\)"
    ):
        live()


def test_a_version_that_is_not_promoted_fails(live: Bench, pipeline: Pipeline) -> None:
    pipeline.ending = "model intaglio: version 2 did not pass its gates; champion: version 1\n"
    with pytest.raises(IntaglioError, match="week 1: no champion at the end of the run"):
        live()


def test_the_folder_of_another_bench_and_missing_images_are_refused(
    live: Bench, pipeline: Pipeline, home: Path, tmp_path: Path
) -> None:
    live()
    with pytest.raises(IntaglioError, match="holds the weeks of another bench"):
        live(seed=1)
    with pytest.raises(IntaglioError, match="make 3 tasks"):
        live(tasks=9)
    shutil.copytree(home, tmp_path / "empty", ignore=shutil.ignore_patterns("*.zip"))
    asked = StreamBenchSettings(2, 0, str(home / "sources.yaml"), (tmp_path / "empty/zips",), (), False, False)
    with pytest.raises(IntaglioError, match="none of its sources is in"):
        bench_stream(tmp_path / "empty", asked, tmp_path / "other", lambda figures: None)


def test_ratios_compare_both_ends_and_leave_out_weeks_that_were_interrupted() -> None:
    events = ["add"] * 6 + ["nothing", "add", "add", "nothing"]
    weeks = [Week(number, event) for number, event in enumerate(events, start=1)]  # type: ignore[arg-type]
    rows = [{"week": week.number, "seconds": 10.0 + week.number, "peak_memory_mb": 100.0} for week in weeks]
    found = ratios(rows, weeks, set())
    assert found["add_at_end_to_add_at_2"] == round(18 / 13, 4)  # medians of weeks 6, 8, 9 and 2, 3, 4
    assert found["nothing_at_end_to_nothing_at_6"] == round(20 / 17, 4)
    assert found["memory_add_at_end_to_add_at_2"] == 1.0
    assert ratios(rows, weeks, {7})["nothing_at_end_to_nothing_at_6"] is None
    assert ratios(rows[:2], weeks, set())["add_at_end_to_add_at_2"] is None


def test_only_stages_that_ran_count() -> None:
    shown = "[1/3 done, 1 s] ingest@a ran (1 s)\n[2/3 done, 2 s] bundle cached (0 s)\n    evaluate | text\n"
    assert stage_seconds(shown, {"ingest@a": 1.2, "bundle": 3.0, "evaluate": 4.0}) == {"ingest@a": 1.2}
