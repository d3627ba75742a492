"""The files that a new project begins with: those of this repository, which the wheel carries too.

pyproject.toml puts them into the wheel, under `template/` beside this file and without a leading dot. From a clone they
are read where they are. So there is one dvc.yaml, one params.yaml and so on, and no copy that could differ.
"""

from __future__ import annotations

from pathlib import Path

from components.config import BASE
from components.errors import IntaglioError
from flows.tasks.params_file import ParamsText

DVC_YAML, PARAMS, MLRUNS = "dvc.yaml", "params.yaml", "mlruns/.gitignore"
# Path in a project and in the repository -> name below template/ in the wheel.
PACKAGED = {
    ".gitignore": "gitignore",
    ".dvcignore": "dvcignore",
    MLRUNS: "mlruns_gitignore",
    "prefect.toml": "prefect.toml",
    "prefect.yaml": "prefect.yaml",
    PARAMS: PARAMS,
    DVC_YAML: DVC_YAML,  # last: it makes the folder a project
}
UNNAMED = "first"  # embedding.shared until the first task, which is shared, gives its name


def template_path(path: str) -> Path:
    """Return where a file that a project begins with lies in this installation.

    Raises:
        IntaglioError: neither the wheel nor the source tree has it.
    """
    here = Path(__file__).parent
    for place in (here / "template" / PACKAGED[path], here.parents[1] / path):
        if place.is_file():
            return place
    raise IntaglioError(f"{here}: the installation lacks {path}; install intaglio again")


def template_text(path: str) -> str:
    """Return the text of a file that a project begins with.

    Raises:
        IntaglioError: the installation lacks it.
    """
    return template_path(path).read_text()


def new_params(default_stream: bool) -> str:
    """Return the params.yaml of a new project.

    Args:
        default_stream: whether its tasks are those of the default stream; otherwise there is none yet.

    Raises:
        IntaglioError: the source tree's own params.yaml no longer has the default stream.
    """
    params = ParamsText(template_path(PARAMS))
    stream, fetch, embedding = params.section("stream"), params.section("fetch"), params.section("embedding")
    if default_stream:
        if any(stream[key] for key in stream if key != "tasks") or list(stream["tasks"]) != list(fetch["tasks"]):
            raise IntaglioError(
                f"{params.path}: has other tasks than the default stream; `git stash` them, or leave out "
                "--default-stream"
            )
        return template_text(PARAMS)
    for key in stream:
        stream[key] = type(stream[key])()
    fetch["tasks"] = []
    if embedding["shared"] != BASE:
        embedding["shared"] = UNNAMED
    return params.text()
