"""Random kills over the whole pipeline, each resumed to the end: every artefact must be the clean run's, byte for byte.

    python -m tests.crash.random_kills --runs 100 --flows 10 --seed 0

A run begins somewhere in the pipeline (what is downstream was never made), is killed one to four times, at random times
or at random named points, and is then let through. `--flows` of the runs are whole `intaglio run` commands, with
Prefect and every process as a person would start it; in the others the stages, DVC and the registry run their real code
in forks of one process that has imported everything, which makes them cheap.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.planning.dag import Dag, read_dag
from tests.crash.intaglio_run import run_intaglio
from tests.crash.points import DVC_POINTS, POINTS, STRUCK
from tests.crash.preloaded import SECOND_WRITER
from tests.crash.processes import left_after
from tests.crash.server import Server, start_server
from tests.crash.world import artefacts, differences, make_project

STAGES = ("backbone", "fetch", "evaluate", "report", "bundle")
TASK_STAGES = ("ingest", "validate", "finetune", "signature")
_GRACE_SECONDS = 20.0  # within which nothing of a killed run may be left
_CHECKPOINTS = 12  # of training `pixels`
_MAX_STRIKES = 6  # some points are never reached
_CONCLUDING = 0.25  # share of the runs in which publishing and registering are struck too


@dataclass(frozen=True)
class Strike:
    """One kill: of `repro` (dvc), `recovered` (dvc as the flow starts it), `conclude` (the registry) or `flow`.

    `fault` names a point in the stage `stage`, or in DVC where that is ""; without one, `whom` is killed after
    `after` seconds.
    """

    driver: str
    stage: str = ""
    fault: str = ""
    after: float = 0.0
    whom: str = ""


@dataclass
class Result:
    """One run: the strikes, which of them met a living process, and what is wrong in the end (nothing, one hopes)."""

    start: str
    strikes: list[Strike] = field(default_factory=list)
    struck: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """How often a living process was killed."""
        return sum(self.struck)


@dataclass(frozen=True)
class Template:
    """A project after a clean run, never published, and the seconds that all its stages took."""

    root: Path
    clean: dict[str, str]
    dag: Dag
    seconds: float

    @classmethod
    def of(cls, root: Path, seconds: float) -> Template:
        """Of a project whose stages took so long."""
        from flows.registry.mlflow_store import connect

        connect(root).search_experiments()  # makes the tables of the tracking database, which takes seconds
        with chdir(root):  # DVC names stages as they are seen from the current folder
            return cls(root, artefacts(root), read_dag(root), seconds)


def play(server: Server, template: Template, root: Path, dice: random.Random, flow: bool) -> Result:
    """One run in the folder `root`: prepared, killed one to three times, resumed and compared."""
    begun = time.monotonic()
    result = Result(dice.choice(template.dag.stages).name)
    shutil.copytree(template.root, root, symlinks=True)
    _unmake(root, result.start, template.dag)
    share = (1 + len(template.dag.downstream([result.start]))) / len(template.dag.stages)
    wanted = 1 if flow else dice.choice((1, 1, 2, 3))
    for _ in range(_MAX_STRIKES):
        strike = _flow_strike(dice) if flow else _strike(dice, 0.5 + share * template.seconds)
        done = _attempt(server, root, strike, dice, result)
        if flow or result.kills == wanted:
            break
        if done:  # it ended before it was struck: there must be something to strike at
            _unmake(root, result.start, template.dag)
    if not flow and dice.random() < _CONCLUDING:
        server.recovered(root, "repro")
        _attempt(server, root, Strike("conclude", after=dice.uniform(0.2, 3.0), whom="leader"), dice, result)
    result.problems += _finish(server, template, root, flow)
    result.seconds = time.monotonic() - begun
    return result


def _strike(dice: random.Random, seconds: float) -> Strike:
    kind = dice.random()
    if kind < 0.4:
        driver, whom = dice.choice(("repro", "recovered")), dice.choice(("leader", "last", "all"))
        return Strike(driver, after=dice.uniform(0.2, seconds), whom=whom)
    if kind < 0.55:
        return Strike("recovered", fault=f"kill@{dice.choice(DVC_POINTS)}:{dice.randint(1, 6)}")
    # Training is where most of the time goes, so also where most kills fall.
    name = dice.choice((*STAGES, *TASK_STAGES, "finetune", "finetune"))
    stage = name if name in STAGES else f"{name} {dice.choice(('pixels', 'photos'))}"
    number = dice.randint(1, _CHECKPOINTS if name == "finetune" else 3)
    return Strike("repro", stage, f"kill@{dice.choice(POINTS)}:{number}")


def _flow_strike(dice: random.Random) -> Strike:
    return Strike("flow", after=dice.uniform(1.0, 30.0), whom=dice.choice(("leader", "leader", "any", "all")))


def _attempt(server: Server, root: Path, strike: Strike, dice: random.Random, result: Result) -> bool:
    """Strike once; returns whether everything was done before the blow fell."""
    server.printed()
    if strike.driver == "flow":
        attempt = run_intaglio(root, strike.after, strike.whom, dice)
        result.problems += [f"two processes at once: {stage}" for stage in attempt.twice]
        status, struck = attempt.status, attempt.struck
    else:
        status = _ask(server, root, strike)
        struck = STRUCK in (printed := server.printed())
        result.problems += [line for line in printed.splitlines() if SECOND_WRITER in line]
    result.strikes.append(strike)
    result.struck.append(struck)
    if struck and (orphans := left_after(root, _GRACE_SECONDS)):
        result.problems.append(f"orphans of {strike}: {orphans}")
    return status == 0


def _ask(server: Server, root: Path, strike: Strike) -> int:
    if strike.driver == "conclude":
        return server.conclude(root, after=strike.after, whom=strike.whom)
    ask = server.dvc if strike.driver == "repro" else server.recovered
    if strike.stage:
        return ask(root, "repro", stage_fault=f"{strike.stage}={strike.fault}")
    return ask(root, "repro", fault=strike.fault, after=strike.after, whom=strike.whom)


def _finish(server: Server, template: Template, root: Path, flow: bool) -> Iterator[str]:
    """Let the run through, with no hand laid on it; yields what is wrong then."""
    if flow:
        last = run_intaglio(root)
        if last.status != 0:
            yield f"`intaglio run` ended with {last.status}: {last.output[-500:]}"
        yield from (f"two processes at once: {stage}" for stage in last.twice)
    elif server.recovered(root, "repro") != 0 or server.conclude(root) != 0:
        yield f"the resumed run failed: {server.printed()[-500:]}"
    yield from (line for line in server.printed().splitlines() if SECOND_WRITER in line)
    yield from (f"differs: {name}" for name in differences(root, template.clean))
    yield from (f"left behind: {path.name}" for path in root.glob(".intaglio/checkpoints/*"))
    yield from (f"orphan: {line}" for line in left_after(root, _GRACE_SECONDS))
    yield from _registry(root)
    status, printed = server.dvc(root, "repro"), server.printed()
    if status != 0 or "Running stage" in printed:
        yield f"afterwards `dvc repro` ended with {status}: {printed[-500:]}"


def _registry(root: Path) -> Iterator[str]:
    """What the registry must hold: this state published and registered once, its champion with the very bundle."""
    from flows.registry.mlflow_store import PARENT_KIND, aliases, bundle_of, connect, experiment_id, runs, versions
    from flows.registry.publish import find_publication

    client = connect(root)
    if find_publication(client, root) is None:
        yield "nothing was published"
        return
    experiment = experiment_id(client, root)
    if found := runs(client, experiment, "attributes.status = 'RUNNING'"):
        yield f"{len(found)} runs are still open"
    condition = f"attributes.status = 'FINISHED' and tags.kind = '{PARENT_KIND}'"
    if (count := len(runs(client, experiment, condition))) != 1:
        yield f"published {count} times"
    if (count := len(versions(client))) != 1:
        yield f"registered {count} times"
    if (known := aliases(client)) != {"champion": "1"}:
        yield f"aliases are {known}"
    elif artefacts(bundle_of(client, root, "1")) != artefacts(root / "models/bundle"):
        yield "the champion's bundle is not models/bundle"


def _unmake(root: Path, start: str, dag: Dag) -> None:
    """Make the stage `start` and all that follows from it never have happened."""
    gone = {start} | dag.downstream([start])
    yaml, lock = YAML(), root / "dvc.lock"
    document: dict[str, Any] = yaml.load(lock)
    assert gone <= set(document["stages"])
    for stage in gone:
        for out in document["stages"].pop(stage).get("outs", []):
            path = root / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if document["stages"]:
        with lock.open("w") as file:
            yaml.dump(document, file)
    else:
        lock.unlink()
    shutil.rmtree(root / ".dvc/cache/runs")  # or DVC would bring them back without running them


@contextmanager
def arena() -> Iterator[tuple[Server, Template, Path]]:
    """A server, a template and a folder to play in."""
    with tempfile.TemporaryDirectory(prefix="random-kills-") as folder, start_server(Path(folder) / "log") as server:
        root = Path(folder) / "clean"
        make_project(root)
        begun = time.monotonic()
        assert server.dvc(root, "repro") == 0, server.printed()
        yield server, Template.of(root, time.monotonic() - begun), Path(folder)


def summary(results: Sequence[Result]) -> str:
    """What was done and how it ended, in one line."""
    strikes = [pair for result in results for pair in zip(result.strikes, result.struck, strict=True)]
    kinds = Counter(strike.driver for strike, struck in strikes if struck)
    killed, bad = sum(result.kills > 0 for result in results), sum(bool(result.problems) for result in results)
    return f"{len(results)} runs, {killed} of them killed, {kinds.total()} kills ({dict(kinds)}), {bad} bad"


def main(arguments: list[str] | None = None) -> int:
    """Play; prints a line per run and the sum, and returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.random_kills")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--flows", type=int, default=10, help="how many of them are whole `intaglio run` commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write every run")
    given = parser.parse_args(arguments)
    results = []
    with arena() as (server, template, folder):
        for number in range(given.runs):
            root, dice = folder / f"run-{number}", random.Random(f"{given.seed}/{number}")
            result = play(server, template, root, dice, flow=number < given.flows)
            results.append(result)
            verdict = "; ".join(result.problems) or "as the clean run"
            print(f"run {number + 1}/{given.runs}, {result.seconds:.0f} s: {result.kills} kills, {verdict}", flush=True)
            if result.problems:
                print(f"  from {result.start}: {result.strikes}", flush=True)
            shutil.rmtree(root)
    print(summary(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main())
