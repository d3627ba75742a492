"""The files that a new project begins with: those of this repository, which the wheel carries too.

pyproject.toml puts them into the wheel, under `template/` beside this file and without a leading dot. From a clone they
are read where they are. So there is one dvc.yaml, one params.yaml and so on, and no copy that could differ.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from components.config import BASE
from components.errors import IntaglioError

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
_NULL = "tag:yaml.org,2002:null"


@cache
def template_text(path: str) -> str:
    """Return the text of a file that a project begins with.

    Raises:
        IntaglioError: neither the wheel nor the source tree has it.
    """
    here = Path(__file__).parent
    for place in (here / "template" / PACKAGED[path], here.parents[1] / path):
        if place.is_file():
            return place.read_text()
    raise IntaglioError(f"{here}: the installation lacks {path}; install intaglio again")


def new_params(default_stream: bool) -> str:
    """Return the params.yaml of a new project.

    Args:
        default_stream: whether its tasks are those of the default stream; otherwise there is none yet.

    Raises:
        IntaglioError: the source tree's own params.yaml no longer has the default stream.
    """
    text = template_text(PARAMS)
    yaml = YAML()  # the round-trip kind: comments, order and quotes survive
    yaml.preserve_quotes = True
    yaml.width = 2**16  # never wrap a line that was not wrapped
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    document = yaml.load(text)
    stream, fetched = document["stream"], document["fetch"]["tasks"]
    if default_stream:
        if list(stream) != ["tasks"] or list(stream["tasks"]) != list(fetched):
            raise IntaglioError(
                f"{Path(__file__).parents[2] / PARAMS}: has other tasks than the default stream; "
                "`git stash` them, or leave out --default-stream"
            )
        return text
    for key in list(stream):
        if key != "tasks":
            del stream[key]
    stream["tasks"] = {}
    document["fetch"]["tasks"] = []
    if document["embedding"]["shared"] != BASE:
        document["embedding"]["shared"] = UNNAMED
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    return buffer.getvalue()
