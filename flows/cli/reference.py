"""Write the reference pages and the comments of params.yaml from the code: `python -m flows.cli.reference`.

Settings come from components/config.py, commands from their functions. tests/contract/test_reference.py fails where a
page or a comment is not what the code gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import typer

from components.config import Config
from components.io import write_text
from flows.settings import find_root

COMMAND = "python -m flows.cli.reference"
SETTINGS, COMMANDS = "docs/reference/settings.md", "docs/reference/commands.md"
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: (?P<value>(?!#).*?))?(?:\s+# .*)?")
_COMMENT_COLUMN, _LONGEST = 27, 120
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
_OPTION_TYPES = {str: "text", int: "whole number", float: "number", Path: "path", bool: "switch"}
_DEFAULTS = {"stream.tasks": "the default stream"}
_STATUSES = """\
| exit status | meaning |
|---|---|
| 0 | done |
| 1 | not done, or what the command names below; a line that begins with `error:` says what to do |
| 2 | an unknown command, option or value |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM |
"""


def write_reference(root: Path) -> list[Path]:
    """Write both pages and params.yaml's comments in the repository at `root`; return the files that changed."""
    changed = []
    for name, text in reference(root).items():
        if not (root / name).is_file() or (root / name).read_text() != text:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(root / name, text)
            changed.append(root / name)
    return changed


def reference(root: Path) -> Mapping[str, str]:
    """Return what the generated files must hold, by their paths in the repository at `root`."""
    params = commented((root / "params.yaml").read_text())
    return {"params.yaml": params, SETTINGS: settings_page(params), COMMANDS: commands_page()}


def commented(params: str) -> str:
    """Return a params.yaml with the first sentence of each description as its comment; values and layout stay.

    The comment above the first setting is kept.
    """
    described = {name: field["description"] for name, field in fields()}
    lines: list[str] = []
    place: list[str] = []
    for line in params.splitlines():
        found = _LINE.fullmatch(line)
        if not found:
            if not place or not line.lstrip().startswith("#"):
                lines.append(line)
            continue
        indent, value = found["indent"], found["value"]
        place = [*place[: len(indent) // 2], found["key"]]
        setting = f"{indent}{found['key']}:" + (f" {value}" if value else "")
        comment = re.split(r"(?<=\.)\s", described.get(".".join(place), ""))[0].removesuffix(".")
        beside = f"{setting:<{_COMMENT_COLUMN}}  # {comment}" if value else ""
        if comment and beside and len(beside) <= _LONGEST:
            lines.append(beside)
        else:
            lines += [f"{indent}# {comment}", setting] if comment else [setting]
    return "\n".join(lines) + "\n"


def settings_page(params: str) -> str:
    """Return docs/reference/settings.md: every section of params.yaml with its settings.

    Args:
        params: the text of params.yaml, whose values are the defaults.
    """
    values: dict[str, str] = {}
    place: list[str] = []
    for found in filter(None, map(_LINE.fullmatch, params.splitlines())):
        place = [*place[: len(found["indent"]) // 2], found["key"]]
        values[".".join(place)] = found["value"] or ""
    page = [
        "# Settings",
        f"This page is generated from `components/config.py` by `{COMMAND}`.",
        "`params.yaml` holds every setting. An unknown key or a wrong type is an error. "
        "`dvc exp run -S finetune.rank=4` tries another value without editing the file.",
    ]
    rows: list[str] = []
    for name, field in fields():
        if "$ref" in field:
            page += ["\n".join(rows), f"## {name}", field["description"]]
            rows = []
        else:
            rows = rows or ["| setting | type | default | meaning |", "|---|---|---|---|"]
            default = f"`{values[name]}`" if values.get(name) else _DEFAULTS.get(name, "none")
            rows.append(_row(f"`{name}`", _type(field), default, field["description"]))
    for kind, where in (("Task", "tasks"), ("Update", "updates")):
        inner = Config.model_json_schema()["$defs"][kind]["properties"]
        rows += [
            _row(f"`stream.{where}.NAME.{key}`", _type(field), "", field["description"]) for key, field in inner.items()
        ]
    return "\n\n".join(part for part in [*page, "\n".join(rows)] if part) + "\n"


def commands_page() -> str:
    """Return docs/reference/commands.md: every command with its arguments and options."""
    from flows.cli.app import app

    parts = ["# Commands", f"This page is generated from `flows/cli/` by `{COMMAND}`.", _STATUSES.strip()]
    for name, command in commands("intaglio", typer.main.get_command(app)):
        parts += [f"## {name}", command.help]
        if command.params:
            rows = ["| argument or option | type | default | meaning |", "|---|---|---|---|"]
            hints = get_type_hints(inspect.unwrap(command.callback))
            parts.append("\n".join(rows + [_parameter(one, hints[one.name]) for one in command.params]))
    return "\n\n".join(parts) + "\n"


def fields() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield names and JSON schemas: of settings outside of sections, then of each section and its settings."""
    schema = Config.model_json_schema()
    yield from ((name, field) for name, field in schema["properties"].items() if "$ref" not in field)
    for name, field in schema["properties"].items():
        if "$ref" in field:
            section = schema["$defs"][field["$ref"].rpartition("/")[2]]
            yield name, {**field, "description": section["description"]}
            yield from ((f"{name}.{key}", setting) for key, setting in section["properties"].items())


def _type(field: Mapping[str, Any]) -> str:
    """Write a JSON schema for people: `whole number, at least 1`."""
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"list: {_type(field['items'])}"
    if field["type"] in ("object", "null"):
        return {"object": "mapping", "null": "`null`"}[field["type"]]
    limits = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
    }
    bounds = [text.format(f"{field[key]:g}") for key, text in limits.items() if key in field]
    return ", ".join([_TYPES[field["type"]], *bounds])


def commands(prefix: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group, by the words that a person types."""
    if not hasattr(command, "commands"):
        yield prefix, command
        return
    for name, below in command.commands.items():
        yield from commands(f"{prefix} {name}", below)


def _parameter(parameter: Any, annotation: Any) -> str:
    kinds = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if kind in _OPTION_TYPES]
    kind = kinds[0] if kinds else str  # a list of texts
    names = [*parameter.opts, *parameter.secondary_opts]
    if not names[0].startswith("-"):
        names = [parameter.name.upper()]
    bounds = [f"at least {parameter.min}"] if parameter.min is not None else []
    bounds += [f"at most {parameter.max}"] if parameter.max is not None else []
    default = "required" if parameter.required else "" if parameter.default in (None, "") else f"`{parameter.default}`"
    if kind is bool:
        default = f"`{parameter.opts[0] if parameter.default else parameter.secondary_opts[0]}`" if names[1:] else ""
    return _row(
        ", ".join(f"`{name}`" for name in names), ", ".join([_OPTION_TYPES[kind], *bounds]), default, parameter.help
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


if __name__ == "__main__":
    for path in write_reference(find_root()):
        print(path)
