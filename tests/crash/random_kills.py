"""Random kills over the whole pipeline, each resumed to the end: every artefact must be the clean run's, byte for byte.

    python -m tests.crash.random_kills --runs 100 --flows 10 --seed 0

A run begins somewhere in the pipeline (what is downstream was never made), is killed one to four times at random times
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.dag import Dag, read_dag
from tests.crash.intaglio_run import run_intaglio
from tests.crash.points import DVC_POINTS, POINTS
from tests.crash.preloaded import SECOND_WRITER
from tests.crash.processes import left_after
from tests.crash.server import Server, start_server
from tests.crash.world import artefacts, differences, make_project

STAGES = ("backbone", "fetch", "evaluate", "report", "bundle")
TASK_STAGES = ("ingest", "validate", "finetune", "signature")
_GRACE_SECONDS = 20.0  # within which nothing of a killed run may be left
_MAX_POINT = 14  # of training's checkpoints there are 12


@dataclass(frozen=True)
class Strike:
    """One kill: of `repro` (dvc), `mended` (dvc as the flow starts it), `conclude` (the registry) or `flow`.

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
    """One run: what was done to it, how its attempts ended, and what is wrong in the end (nothing, one hopes)."""

    start: str
    strikes: list[Strike]
    statuses: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """Strikes that met a living process."""
        return sum(status != 0 for status in self.statuses[: len(self.strikes)])


@dataclass(frozen=True)
class Template:
    """A project after a clean run: never published, and the seconds that all its stages took."""

    root: Path
    clean: dict[str, str]
    dag: Dag
    seconds: float


def make_template(server: Server, folder: Path) -> Template:
    """Make the project and run it once, undisturbed."""
    from flows.tracking import connect

    root = folder / "clean"
    make_project(root)
    begun = time.monotonic()
    assert server.dvc(root, "repro") == 0, server.said()
    seconds = time.monotonic() - begun
    connect(root).search_experiments()  # the tables of the tracking database, which take seconds
    return Template(root, artefacts(root), read_dag(root), seconds)


def plan(dice: random.Random, template: Template, flow: bool) -> tuple[str, list[Strike]]:
    """Where a run begins, and how it is killed."""
    start = dice.choice(template.dag.stages).name
    share = (1 + len(template.dag.downstream([start]))) / len(template.dag.stages)
    if flow:
        return start, [_flow_strike(dice) for _ in range(dice.choice((1, 1, 2)))]
    strikes = [_strike(dice, 0.5 + share * template.seconds) for _ in range(dice.choice((1, 1, 2, 3)))]
    if dice.random() < 0.25:
        strikes.append(Strike("conclude", after=dice.uniform(0.2, 3.0), whom="leader"))
    return start, strikes


def _strike(dice: random.Random, seconds: float) -> Strike:
    kind = dice.random()
    if kind < 0.5:
        driver, whom = dice.choice(("repro", "mended")), dice.choice(("leader", "last", "all"))
        return Strike(driver, after=dice.uniform(0.2, seconds), whom=whom)
    if kind < 0.65:
        return Strike("mended", fault=f"kill@{dice.choice(DVC_POINTS)}:{dice.randint(1, 6)}")
    # Training is where most of the time goes, so also where most kills fall.
    name = dice.choice((*STAGES, *TASK_STAGES, "finetune", "finetune"))
    stage = name if name in STAGES else f"{name} {dice.choice(('pixels', 'photos'))}"
    return Strike("repro", stage, f"kill@{dice.choice(POINTS)}:{dice.randint(1, _MAX_POINT)}")


def _flow_strike(dice: random.Random) -> Strike:
    return Strike("flow", after=dice.uniform(1.0, 45.0), whom=dice.choice(("leader", "leader", "any", "all")))


def play(server: Server, template: Template, root: Path, dice: random.Random, flow: bool) -> Result:
    """One run in the folder `root`: prepared, killed, resumed and compared."""
    begun = time.monotonic()
    start, strikes = plan(dice, template, flow)
    shutil.copytree(template.root, root, symlinks=True)
    _unmake(root, start, template.dag)
    result = Result(start, strikes)
    for strike in strikes:
        if strike.driver == "conclude":
            result.statuses.append(server.mended(root, "repro"))
        result.statuses.append(_attempt(server, root, strike, dice, result))
        if result.statuses[-1] != 0 and (orphans := left_after(root, _GRACE_SECONDS)):
            result.problems.append(f"orphans of {strike}: {orphans}")
    result.problems += list(_finish(server, template, root, flow, result))
    result.seconds = time.monotonic() - begun
    return result


def _attempt(server: Server, root: Path, strike: Strike, dice: random.Random, result: Result) -> int:
    if strike.driver == "flow":
        attempt = run_intaglio(root, strike.after, strike.whom, dice)
        result.problems += [f"two processes at once: {stage}" for stage in attempt.twice]
        return attempt.status
    ask = {"repro": server.dvc, "mended": server.mended}.get(strike.driver)
    if ask is None:
        return server.conclude(root, after=strike.after, whom=strike.whom)
    if strike.stage:
        return ask(root, "repro", stage_fault=f"{strike.stage}={strike.fault}")
    return ask(root, "repro", fault=strike.fault, after=strike.after, whom=strike.whom)


def _finish(server: Server, template: Template, root: Path, flow: bool, result: Result) -> Iterator[str]:
    """Let the run through, with no hand laid on it; yields what is wrong then."""
    log = server.said()
    if flow:
        last = run_intaglio(root)
        result.statuses.append(last.status)
        if last.status != 0:
            yield f"`intaglio run` ended with {last.status}: {last.output[-500:]}"
        yield from (f"two processes at once: {stage}" for stage in last.twice)
    else:
        for ask in (lambda: server.mended(root, "repro"), lambda: server.conclude(root)):
            result.statuses.append(ask())
            if result.statuses[-1] != 0:
                yield f"the resumed run ended with {result.statuses[-1]}: {server.said()[-500:]}"
    log += server.said()
    yield from (line for line in log.splitlines() if SECOND_WRITER in line)
    yield from (f"differs: {name}" for name in differences(root, template.clean))
    yield from (f"left behind: {path.name}" for path in root.glob(".intaglio/checkpoints/*"))
    yield from (f"orphan: {line}" for line in left_after(root, _GRACE_SECONDS))
    yield from _registry(root)
    if server.dvc(root, "repro") != 0 or "Running stage" in (said := server.said()):
        yield f"a stage was not recorded as done: {said[-500:]}"


def _registry(root: Path) -> Iterator[str]:
    """What the registry must hold: this state published and registered once, its champion with the very bundle."""
    from flows.publish import find_publication
    from flows.tracking import PARENT_KIND, aliases, bundle_of, connect, experiment_id, runs, versions

    client = connect(root)
    publication = find_publication(client, root)
    if publication is None:
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
        return
    served, built = bundle_of(client, root, "1"), root / "models/bundle"
    if artefacts(served) != artefacts(built):
        yield "the champion's bundle is not models/bundle"


def _unmake(root: Path, start: str, dag: Dag) -> None:
    """Make the stage `start` and all that follows from it never have happened."""
    gone = {start} | dag.downstream([start])
    yaml, lock = YAML(), root / "dvc.lock"
    document: dict[str, Any] = yaml.load(lock)
    for stage in gone & set(document["stages"]):
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
        yield server, make_template(server, Path(folder)), Path(folder)


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
                print(f"  from {result.start}: {result.strikes}, statuses {result.statuses}", flush=True)
            shutil.rmtree(root)
    bad = sum(bool(result.problems) for result in results)
    kills = Counter(strike.driver for result in results for strike in result.strikes)
    print(f"{len(results)} runs, {sum(result.kills for result in results)} kills ({dict(kills)} planned), {bad} bad")
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
