"""The one editor of params.yaml: a change is whole or not at all, and comments and layout stay.

    text --> top-level sections --> only those that a change touches are parsed and written again --> atomic rename

So the other sections stay as they are, byte for byte, and so do the comments between them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from components.config import Task, Update
from components.errors import IntaglioError
from components.io import atomic_file
from components.params import load_config

_SECTION = re.compile(r"""^(?P<quote>["']?)(?P<name>\w+)(?P=quote):""")
_NULL = "tag:yaml.org,2002:null"


class ParamsText:
    """The text of a params.yaml, of which sections can be changed."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            IntaglioError: it is missing, or git left the marks of a conflict in it.
        """
        self.path = path
        try:
            text = path.read_text()
        except FileNotFoundError:
            raise IntaglioError(f"{path}: file not found; run the command in the project's folder") from None
        if re.search(r"^(<<<<<<<|>>>>>>>)", text, re.MULTILINE):
            raise IntaglioError(
                f"{path}: has git's marks of a conflict; keep the lines of both sides, remove the marks"
            )
        self._parts = list(_parts(text))
        self._parsed: dict[str, CommentedMap] = {}

    def section(self, name: str) -> CommentedMap:
        """Return a top-level section, which may be changed in place.

        Raises:
            IntaglioError: there is no such section, or it is not YAML.
        """
        if name not in self._parsed:
            found = next((part for key, part in self._parts if key == name), None)
            try:
                section = _yaml(found or "").load(found)[name] if found else None
            except YAMLError as error:
                raise IntaglioError(f"{self.path}: not valid YAML: {' '.join(str(error).split())}") from None
            if not isinstance(section, CommentedMap):
                raise IntaglioError(f"{self.path}: expected a section '{name}:' with a setting on each line below it")
            self._parsed[name] = section
        return self._parsed[name]

    def text(self) -> str:
        """Return the text with what was changed."""
        return "".join(
            _dumped(key, part, self._parsed[key]) if key in self._parsed else part for key, part in self._parts
        )


def change_params(path: Path, change: Callable[[ParamsText], object]) -> None:
    """Change a params.yaml atomically; a kill leaves the old file or the new one.

    Args:
        path: of the file.
        change: changes the sections in place.

    Raises:
        IntaglioError: the result could not be loaded; nothing was written.
    """
    params = ParamsText(path)
    change(params)
    with atomic_file(path) as temporary:
        temporary.write_text(params.text())
        try:
            load_config(temporary)  # never replace a file that works by one that does not
        except IntaglioError as error:
            raise IntaglioError(str(error).replace(str(temporary), str(path))) from None


def task_entry(task: Task) -> CommentedMap:
    """Return the entry of a task on one line, without the settings that have their default."""
    return _entry(task.model_dump(exclude_defaults=True))


def update_entry(update: Update) -> CommentedMap:
    """Return the entry of an update on one line."""
    return _entry(update.model_dump())


def entries(stream: CommentedMap, key: str) -> CommentedMap:
    """Return the entries of one kind, such as `updates`; the key is added where the section lacks it."""
    if not isinstance(stream.get(key), CommentedMap):
        stream[key] = CommentedMap()
    found: CommentedMap = stream[key]
    if not found:
        found.fa.set_block_style()  # `{}` would hold all entries on one line
    return found


def move_entry(stream: CommentedMap, name: str, start: str, end: str) -> None:
    """Move an entry with its comment to another kind, and drop a kind that has become empty.

    Args:
        stream: the section.
        name: of the entry.
        start: the kind that it is of; nothing happens where it is not.
        end: the kind that it becomes.
    """
    if name not in (stream.get(start) or {}):
        return
    entries(stream, end)[name] = stream[start].pop(name)
    if not stream[start] and start != "tasks":
        del stream[start]


def _entry(values: dict[str, object]) -> CommentedMap:
    entry = CommentedMap(values)
    entry.fa.set_flow_style()
    return entry


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Split a text into its sections, by name, and what stands between them, by ""."""
    name, lines, between = "", list[str](), list[str]()
    for line in text.splitlines(keepends=True):
        found = _SECTION.match(line)
        if found:
            yield name, "".join(lines)
            yield "", "".join(between)
            name, lines, between = found["name"], [line], []
        elif line.strip() and line[0] in " \t-":  # a sequence may stand at the margin
            lines += [*between, line]
            between = []
        else:
            between.append(line)
    yield name, "".join(lines)
    yield "", "".join(between)


def _yaml(text: str) -> YAML:
    yaml = YAML()  # the round-trip kind: comments, order and quotes survive
    yaml.preserve_quotes = True
    yaml.width = 2**16  # never wrap a line that was not wrapped
    found = re.search(r"^( +)[^\s#]", text, re.MULTILINE)
    yaml.map_indent = len(found[1]) if found else 2
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    return yaml


def _dumped(name: str, before: str, section: CommentedMap) -> str:
    yaml, buffer = _yaml(before), io.StringIO()
    document = yaml.load(before)  # a comment below the section's name belongs to the document
    document[name] = section
    yaml.dump(document, buffer)
    return buffer.getvalue()
