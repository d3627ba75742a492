"""A project that lives for many weeks, with copies of the software of its own, so that this can be upgraded.

FOLDER/software-1, software-2    the packages that run it; the revisions of the second are raised
FOLDER/project                   as `intaglio init` makes it, with the settings of the user's project
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

import components
import flows
from components.bench.process_tree import MeasuredCommand, run_measured
from components.config import BASE
from components.errors import IntaglioError
from components.io import atomic_folder, write_text
from components.params import load_config, with_settings
from flows.tasks.params_file import ParamsText

OPEN_GATES = {
    "min_accuracy_final": 0.0,
    "min_retrieval_accuracy": 0.0,
    "max_forgetting": 1.0,
    "max_accuracy_drop": 1.0,
    "max_retrieval_drop": 1.0,
    "min_coverage": None,
    "max_confusion_bound": None,
}
_COMMAND = [sys.executable, "-c", "from flows.cli.app import main; main()"]
_SHOWN = 15  # lines of a command that failed
_REVISION = re.compile(r'(?P<before>"\w+": |--revision )(?P<number>\d+)')


@dataclass(frozen=True)
class StreamProject:
    """A project and the software that runs it, below one folder."""

    folder: Path

    @property
    def root(self) -> Path:
        """Return the project's folder."""
        return self.folder / "project"

    @property
    def software(self) -> Path:
        """Return the folder of the packages that run it: the last ones installed."""
        later = self.folder / "software-2"
        return later if later.is_dir() else self.folder / "software-1"

    def types(self, *arguments: str, software: Path | None = None) -> MeasuredCommand:
        """Run `intaglio ...` in the project as a user would.

        Args:
            *arguments: of the command line.
            software: folder of the packages that run; without it, the project's own.

        Raises:
            IntaglioError: it failed; the message has the last lines that it printed.
        """
        done = run_measured([*_COMMAND, *arguments], self.root, _environment(software or self.software))
        if done.status:
            lines = "\n".join(done.output.splitlines()[-_SHOWN:])
            raise IntaglioError(f"`intaglio {' '.join(arguments)}` failed ({done.status}) in {self.root}:\n{lines}")
        return done

    def install_later_version(self) -> None:
        """Install software in which the result of every stage is said to differ; `intaglio init --upgrade` follows."""
        if self.software.name == "software-2":  # a killed bench did it
            return
        with atomic_folder(self.folder / "software-2") as later:
            shutil.copytree(self.software, later, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            revisions = later / "components/revisions.py"
            revisions.write_text(_raised(revisions.read_text()))
            template = later / "flows/project/template"  # where an installed package has it
            template.mkdir(exist_ok=True)
            (template / "dvc.yaml").write_text(_raised((self.root / "dvc.yaml").read_text()))


def make_project(folder: Path, params: Path, settings: Sequence[str]) -> StreamProject:
    """Make a project below a folder, unless it is there.

    Args:
        folder: outside of any project.
        params: params.yaml of the user's project, whose settings it gets; its gates let every version pass.
        settings: other values, such as finetune.rank=4.

    Raises:
        IntaglioError: a setting is unknown, or git or DVC failed.
    """
    with_settings(load_config(params, empty=True), settings)  # which names a wrong one
    project = StreamProject(folder)
    if not project.software.is_dir():
        with atomic_folder(project.software) as temporary:
            for package in (components, flows):
                place = Path(package.__path__[0])
                shutil.copytree(place, temporary / place.name, ignore=shutil.ignore_patterns("__pycache__"))
    own = project.root / "params.yaml"
    if not (project.root / "dvc.yaml").is_file():
        project.root.mkdir(parents=True, exist_ok=True)
        project.types("init", ".", software=Path(components.__path__[0]).parent)  # its templates are not in the copy
    if not load_config(own, empty=True).chain:
        write_text(own, _params(params, ParamsText(own).section("embedding")["shared"], settings))
    return project


def _params(path: Path, first: str, settings: Sequence[str]) -> str:
    """Return the text of the user's params.yaml without tasks, with open gates and other settings.

    Args:
        path: of the file.
        first: what a new project has as embedding.shared, until its first task gives the name.
        settings: as the command line has them.
    """
    params = ParamsText(path)
    stream, fetch, embedding = params.section("stream"), params.section("fetch"), params.section("embedding")
    for key in stream:
        stream[key] = type(stream[key])()
    fetch["tasks"] = []
    if embedding.get("shared") != BASE:
        embedding["shared"] = first
    backbone = params.section("backbone")
    if str(backbone["weights"]).endswith(".safetensors"):
        backbone["weights"] = str((path.parent / str(backbone["weights"])).resolve())
    params.section("gates").update(OPEN_GATES)
    for setting in settings:
        place, _, value = setting.partition("=")
        section, _, key = place.partition(".")
        params.section(section)[key] = YAML(typ="safe").load(value)
    return params.text()


def _raised(text: str) -> str:
    return _REVISION.sub(lambda found: f"{found['before']}{int(found['number']) + 1}", text)


def _environment(software: Path) -> dict[str, str]:
    """Return the user's environment, but for what would reach into another project."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    mine.pop("INTAGLIO_CACHE", None)
    return mine | {"PYTHONPATH": str(software), "COLUMNS": "200"}
