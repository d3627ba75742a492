"""A stage that computes nothing: it writes files of the right names, and misbehaves when told to.

`faults/STAGE` (or `faults/STAGE@TASK`) may hold: `fail`, `transient`, `transient once`, `sleep`, `stubborn`,
`pause` (until there is a file `go`).
Every execution adds a line to executed.log.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

NAME = "@".join(sys.argv[1:])
TASK = sys.argv[-1]


def write(path: str, content: object = "") -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content if isinstance(content, str) else json.dumps(content))


def misbehave() -> None:
    fault = Path("faults", NAME)
    orders = fault.read_text().split() if fault.exists() else []
    if "once" in orders:
        fault.unlink()
    if "transient" in orders:
        print("error: the registry did not answer", file=sys.stderr)
        sys.exit(75)
    if "fail" in orders:
        print(f"error: {NAME}: bad.png: not an image", file=sys.stderr)
        sys.exit(1)
    if "crash" in orders:
        raise RuntimeError("a bug")
    if "stubborn" in orders:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "pause" in orders:
        write("alive", str(os.getpid()))
        while not Path("go").exists():
            time.sleep(0.05)
    if "sleep" in orders or "stubborn" in orders:
        write("alive", str(os.getpid()))
        while True:
            time.sleep(0.05)
            Path("beat").write_text(str(time.time()))


def work() -> None:
    stage = sys.argv[1]
    if stage == "backbone":
        write("models/backbone/backbone.safetensors", "weights")
        write("models/modules/base/module.json", {})
    elif stage == "fetch":
        for task in ("first", "second"):
            for label in ("a", "b"):
                write(f"data/raw/{task}/{label}/0.png", f"{task} {label}")
        write("data/index/base.parquet")
    elif stage == "ingest":
        write(f"data/manifests/{TASK}.parquet", TASK)
    elif stage == "validate":
        write(f"data/index/{TASK}.parquet", TASK)
        write(f"reports/validation/{TASK}/result.json", {"task": TASK, "success": True})
    elif stage == "finetune":
        write(f"models/modules/{TASK}/adapter/adapter_config.json", {"task": TASK})
        write(f"models/modules/{TASK}/component.safetensors", TASK)
        write(f"reports/finetune/{TASK}.json", {"epochs": 2, "val_accuracy": 0.9, "seconds": 0.1})
        write(f"reports/finetune/{TASK}.csv", "epoch,train_loss,val_loss,val_accuracy\n1,2.0,2.0,0.8\n2,1.0,1.0,0.9\n")
    elif stage == "signature":
        write(f"models/signatures/{TASK}/signature.json", {"task": TASK})
        write(f"models/signatures/{TASK}/centroids.safetensors", f"centroids of {TASK}")
    elif stage == "record":
        write(f"models/records/{TASK}/card.json", card())
    elif stage == "evaluate":
        evaluate()
    elif stage == "report":
        write("reports/report.html", "<html></html>")
    elif stage == "bundle":
        write("models/bundle/bundle.json", {"files": {}})


def card() -> dict[str, object]:
    curve = [
        {"epoch": 1, "train_loss": 2.0, "val_loss": 2.0, "val_accuracy": 0.8},
        {"epoch": 2, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.9},
    ]
    counts = {"a": 1, "b": 1}
    return {
        "format": 1,
        "task": TASK,
        "classes": ["a", "b"],
        "images": {"train": counts, "val": counts, "test": counts},
        "unreadable": 0,
        "sizes": [[8, 8]],
        "frozen_width": 4,
        "trunk_width": 2,
        "validation": {"success": True, "critical_failures": [], "warnings": [], "expectations": 12},
        "training": {"epochs": 2, "val_accuracy": 0.9, "curve": curve},
        "digests": {"manifest": hashlib.sha256(TASK.encode()).hexdigest(), "adapter": "", "backbone": ""},
        "updates": [],
        "note": "",
        "licence": "",
        "software": "test",
    }


def evaluate() -> None:
    tasks = sorted(path.name for path in Path("models/signatures").iterdir() if path.is_dir())
    one = {"accuracy": 0.8, "retrieval_accuracy": 0.95, "task_aware_accuracy": 0.85}
    measured = {
        "tasks": tasks,
        "accuracy_final": 0.8,
        "retrieval_accuracy": 0.95,
        "forgetting": 0.02,
        "accuracy_matrix": [[0.8] * (position + 1) for position in range(len(tasks))],
        "baselines": {"nearest_class_mean": {"accuracy_final": 0.5}},
        "per_task": {task: dict(one) for task in tasks},
        "certificate": {"tasks": {task: {"coverage": 0.98} for task in tasks}},
    }
    measured.update(json.loads(Path("measured.json").read_text()))
    write("reports/metrics.json", measured)
    write("reports/predictions.parquet")
    write("reports/projection.parquet")


if __name__ == "__main__":
    with Path("executed.log").open("a") as log:
        log.write(NAME + "\n")
    print(f"{NAME}: begins")
    misbehave()
    work()
    print(f"{NAME}: done")
