"""The rules of CONTRIBUTING.md that no linter knows: sizes, words, and what a docstring holds."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import REPOSITORY

PACKAGES = ("components", "flows")
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
PAGES = sorted(path for path in REPOSITORY.glob("**/*.md") if not {".venv", ".git"} & set(path.parts))
MOST_LINES, MOST_FILES, MOST_FILES_OF_LAB, MOST_COMPLEX = 350, 12, 18, 15
VAGUE = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}  # names for what has no subject

# Words that mean something else in this field, or belong to nobody's vocabulary but ours. Parts of names count too.
BANNED = re.compile(
    r"\b(witness(es)?|heard|leash|lessons?|merit|workshop|episodes?|rehears\w*|engrav\w*|replay(ed|s)?|mend(s|ed)?)\b"
    r"|\b(some|no|any)body\b|\bwhoever\b",
    re.IGNORECASE,
)
# torch's own name for launching a recorded graph, and pages that quote the past or these very rules.
ALLOWED = {"components/training/cuda_graph.py": "replay", "CONTRIBUTING.md": BANNED.pattern}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def where(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def functions(*, private: bool = False) -> Iterator[tuple[str, Function]]:
    """Module-level functions and methods, by place and name; dunder methods are Python's, not ours."""
    for path, tree in TREES.items():
        for owner in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
            for node in owner.body:
                if isinstance(node, Function) and (private or not node.name.startswith("_")):
                    yield f"{where(path)}:{node.lineno} {node.name}", node


def dataclasses() -> Iterator[tuple[str, ast.ClassDef]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                yield f"{where(path)}:{node.lineno} {node.name}", node


def options() -> set[str]:
    """Names that stand for an option of the command line with its help, such as those of flows/cli/options.py."""
    nodes = [node for tree in TREES.values() for node in tree.body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]) for node in nodes if "help=" in ast.unparse(node.value)}


def explains(docstring: str | None, name: str) -> bool:
    """Whether a docstring has a line that begins with `name:`."""
    return re.search(rf"^\s*\*?\*?{re.escape(name)}(, \w+)*( \([^)]*\))?: ", docstring or "", re.MULTILINE) is not None


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """What a reader sees of the names, docstrings and comments of a file: lines, snake and camel case in words."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        yield number, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", line)


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=where)
def test_words_are_those_of_the_field(path: Path) -> None:
    allowed = ALLOWED.get(where(path), "")
    found = [
        f"{where(path)}:{number}: {match.group()}"
        for number, line in words_of(path)
        for match in BANNED.finditer(line)
        if not (allowed and (allowed == BANNED.pattern or match.group().lower() == allowed))
    ]
    assert found == []


def test_files_and_folders_stay_small() -> None:
    long = {where(path): lines for path in FILES if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}
    sizes = Counter(where(path.parent) for path in FILES if path.name != "__init__.py")
    most = {"components/lab": MOST_FILES_OF_LAB}
    assert {folder: size for folder, size in sizes.items() if size > most.get(folder, MOST_FILES)} == {}


def complexity(function: Function) -> int:
    """Independent paths through a function, conditions and comprehensions included (McCabe, 1976; as radon counts)."""
    count = 1
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.Assert):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        elif isinstance(node, ast.match_case):
            count += 1
    return count


def test_no_function_has_too_many_paths() -> None:
    counts = {place: complexity(node) for place, node in functions(private=True)}
    assert {place: count for place, count in counts.items() if count > MOST_COMPLEX} == {}


def test_a_file_has_a_subject() -> None:
    assert [where(path) for path in FILES if path.stem in VAGUE] == []


def test_no_class_name_stands_for_two_things() -> None:
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_folder_says_what_it_is_about() -> None:
    silent = [where(path) for path in FILES if path.name == "__init__.py" and not ast.get_docstring(TREES[path])]
    assert silent == []


def test_functions_of_three_parameters_explain_each() -> None:
    """At least nine in ten do; names that say it all are the rest."""
    told, silent, named = 0, [], options()
    for place, node in functions():
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        # An option of the command line has its help.
        types = {a.arg: ast.unparse(a.annotation) for a in every if a.annotation}
        helped = {name for name, type in types.items() if type in named or "help=" in type}
        arguments = [a.arg for a in every if a.arg not in ("self", "cls", *helped)]
        if len(arguments) >= 3:
            docstring = ast.get_docstring(node)
            missing = [name for name in arguments if not explains(docstring, name)]
            told += not missing
            silent += [f"{place}: {', '.join(missing)}"] * bool(missing)
    assert told >= 0.9 * (told + len(silent)), "\n".join(silent)


def test_dataclasses_of_more_than_four_fields_explain_each() -> None:
    silent = []
    for place, node in dataclasses():
        fields = [str(ast.unparse(part.target)) for part in node.body if isinstance(part, ast.AnnAssign)]
        fields = [name for name in fields if not name.startswith("_")]
        missing = [name for name in fields if not explains(ast.get_docstring(node), name)]
        if len(fields) > 4 and missing:
            silent.append(f"{place}: {', '.join(missing)}")
    assert silent == []


def test_a_docstring_is_a_sentence() -> None:
    """It begins with a capital letter, not with `Of ...`, `From ...` or a name, and ends with a full stop."""
    fragments = [
        f"{place}: {first}"
        for place, node in functions()
        if (first := (ast.get_docstring(node) or "").partition("\n\n")[0])
        and (not re.match(r"[A-Z][a-z]+ |[A-Z]", first) or re.match(r"(Of|From|As|With|In|For|The|A|An)\b", first))
    ]
    assert fragments == []
