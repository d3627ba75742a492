"""The generated pages and the comments of params.yaml against the code."""

from __future__ import annotations

import pytest
import typer
from ruamel.yaml import YAML
from synthetic import REPOSITORY

from flows.cli.app import app
from flows.cli.reference import commands, commented, fields, reference

COMMANDS = dict(commands("intaglio", typer.main.get_command(app)))


@pytest.mark.parametrize("name", reference(REPOSITORY))
def test_what_is_generated_is_up_to_date(name: str) -> None:
    assert (REPOSITORY / name).read_text() == reference(REPOSITORY)[name], "run `python -m flows.cli.reference`"


def test_every_setting_has_a_description_and_stands_in_params_yaml() -> None:
    assert [name for name, field in fields() if not field.get("description", "").endswith(".")] == []
    params = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())
    for name, _ in fields():
        section, _, key = name.partition(".")
        assert not key or key in params[section] or section == "stream", name  # `intaglio task` writes the stream's


def test_every_command_and_every_option_has_a_help_that_is_a_sentence() -> None:
    wanting = [name for name, command in COMMANDS.items() if not (command.help or "").strip().endswith(".")]
    for name, command in COMMANDS.items():
        helps = {parameter.name: parameter.help or "" for parameter in command.params}
        wanting += [f"{name} {one}" for one, help in helps.items() if not (help[:1].isupper() and help.endswith("."))]
    assert wanting == []


def test_a_comment_is_replaced_and_a_value_is_not() -> None:
    """Whatever a person wrote beside a setting: the comment is the description's again, and every value stays."""
    params = (REPOSITORY / "params.yaml").read_text()
    changed = params.replace("  rank: 8  ", "  rank: 4  # the wrong words\n  # and more\n", 1)
    assert changed != params
    again = commented(changed)
    assert "wrong words" not in again
    assert YAML(typ="safe").load(again) == YAML(typ="safe").load(changed)
    assert commented(again) == again
