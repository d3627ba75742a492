"""A real project (git and DVC) of the real dvc.yaml's shape, with tables and arrays but without a network."""

from __future__ import annotations

import sys
from pathlib import Path

from synthetic import REPOSITORY, Project, run

STAGE = """
import sys
from pathlib import Path
import numpy as np
import pandas as pd
from components.data.task_data import manifest_path, read_manifest
from components.io import read_table, sha256_file, write_arrays, write_json, write_table
from components.params import load_config

root, config = Path(), load_config()
kind, name = sys.argv[1], sys.argv[-1]
with Path("executed.log").open("a") as log:
    log.write("@".join(sys.argv[1:]) + "\\n")


def manifest(folder, name):
    found = [(path, sha256_file(path)) for path in sorted(Path(folder).rglob("*.png"))]
    rows = [
        {"path": path.relative_to(folder).as_posix(), "label": path.parent.name, "split": "train", "sha256": digest}
        for path, digest in found
    ]
    write_table(manifest_path(root, name), pd.DataFrame(rows))
    return [row["label"] for row in rows]


def record(name, task, labels):
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    write_json(Path("models/signatures", name, "signature.json"), {"name": name})
    write_json(
        Path("models/records", name, "card.json"),
        {"format": 1, "task": task, "classes": sorted(counts), "images": {"train": counts}, "unreadable": 0,
         "sizes": [], "frozen_width": 1, "trunk_width": 1, "validation": {}, "training": {"val_accuracy": 0.5},
         "digests": {}, "updates": [], "note": "", "licence": "", "software": "test"},
    )


if kind == "backbone":
    write_json(Path("models/backbone/backbone.json"), {})
    write_json(Path("models/modules/base/module.json"), {})
elif kind == "fetch":
    Path("data/raw").mkdir(parents=True, exist_ok=True)
    write_table(Path("data/index/base.parquet"), pd.DataFrame({"sha256": [], "task": [], "split": [], "path": []}))
elif kind == "ingest":
    manifest(config.task(name).folder, name)
elif kind == "validate":
    earlier = read_table(Path("data/index", config.task(name).previous + ".parquet"))
    rows = read_manifest(root, name).assign(task=name)[["sha256", "task", "split", "path"]]
    write_table(Path("data/index", name + ".parquet"), pd.concat([earlier, rows], ignore_index=True))
    write_json(Path("reports/validation", name, "result.json"), {"success": True})
elif kind == "finetune":
    place = config.chain.index(name)
    module = Path("models/modules", name)
    write_arrays(module / "component.safetensors", {"l.A": np.ones((2, 3)), "l.B": np.ones((3, 2))})
    if place:
        write_arrays(module / "reuse.safetensors", {"l": np.array([1.0, 0.0] * place)})
    write_json(module / "module.json", {"previous": config.task(name).previous})
    write_json(Path("reports/finetune", name + ".json"), {"epochs": 1})
    Path("reports/finetune", name + ".csv").write_text("epoch,val_accuracy\\n1,0.5\\n")
elif kind == "signature":
    write_json(Path("models/signatures", name, "signature.json"), {"name": name})
elif kind == "record":
    record(name, name, list(read_manifest(root, name)["label"]))
elif kind == "update":
    settings = config.updates[name]
    before = pd.read_json(Path("models/records", settings.previous, "card.json"), typ="series")["images"]["train"]
    labels = [label for label, count in before.items() for _ in range(count)]
    record(name, settings.task, manifest(settings.folder, name) + labels)
elif kind == "evaluate":
    write_json(Path("reports/metrics.json"), {"per_task": {task: {"accuracy": 0.5} for task in config.tasks}})
    for table in ("predictions", "projection"):
        write_table(Path("reports", table + ".parquet"), pd.DataFrame({"task": list(config.tasks)}))
    for plot, head in (("accuracy", "task,accuracy"), ("retrieval", "task,retrieved")):
        Path("reports/plots").mkdir(exist_ok=True)
        Path("reports/plots", plot + ".csv").write_text(head + "\\n")
elif kind == "report":
    Path("reports/report.html").write_text("<html></html>")
elif kind == "bundle":
    write_json(Path("models/bundle/bundle.json"), {"tasks": config.tasks})
"""


def images(folder: Path, *classes: str, count: int = 3) -> Path:
    """Write files that are all different and are called images."""
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            (folder / label / f"{number}.png").write_bytes(f"{folder} {label} {number}".encode())
    return folder


def make_stream_project(root: Path, *tasks: str) -> Project:
    """A project of the real dvc.yaml, whose tasks have images in images/TASK; nothing has run."""
    root.mkdir(parents=True)
    dvc_yaml = (REPOSITORY / "dvc.yaml").read_text().replace("python -m components.stages", "python stage.py")
    (root / "dvc.yaml").write_text(dvc_yaml.replace(" --revision 2", ""))
    (root / "stage.py").write_text(f"import sys\n\nsys.path.insert(0, {str(REPOSITORY)!r})\n{STAGE}")
    head, _, _ = (REPOSITORY / "params.yaml").read_text().partition("  tasks:\n    digits_low")
    lines = [
        f"    {name}: {{folder: images/{name}, previous: {previous}}}  # the task {name}\n"
        for name, previous in zip(tasks, ("base", *tasks), strict=False)
    ]
    head = head.replace("[digits_low, animals, textiles, digits_high, emoji, pixels]", "[]")
    text = head.replace("shared: digits_low", f"shared: {tasks[0]}") + "  tasks:\n" + "".join(lines)
    (root / "params.yaml").write_text(text)
    for name in tasks:
        images(root / "images" / name, "a", "b")
    (root / ".gitignore").write_text("executed.log\n.intaglio/\nimages/\n")
    run(["git", "init", "-q"], root)
    run([sys.executable, "-m", "dvc", "init", "-q"], root)
    commit(root)
    return Project(root)


def commit(root: Path) -> None:
    """Commit everything that git sees."""
    run(["git", "add", "-A"], root)
    run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x"], root)


def contents(root: Path, *folders: str) -> dict[str, bytes]:
    """Read every file below some folders; DVC keeps a .gitignore in them."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.name != ".gitignore"}
