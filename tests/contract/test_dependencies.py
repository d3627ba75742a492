"""dvc.yaml against the code: a stage depends on no source file, and declares what it reads of params.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from components.config import Config
from components.revisions import REVISIONS
from components.stages import STAGES, TASK_STAGES

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
BODIES = {name: stage.get("do", stage) for name, stage in PIPELINE.items()}
HARMLESS = {"cache"}  # sections of params.yaml that change no result: another size must not make DVC learn again


def test_every_stage_is_in_dvc_yaml() -> None:
    assert set(PIPELINE) == STAGES.keys() | TASK_STAGES.keys()


@pytest.mark.parametrize("stage", BODIES)
def test_no_stage_depends_on_the_source_code(stage: str) -> None:
    """What a task left must not be made again because the software changed."""
    assert not [dep for dep in BODIES[stage].get("deps", []) if dep.startswith(("components", "flows"))]


@pytest.mark.parametrize("stage", BODIES)
def test_only_what_comes_after_the_tasks_runs_again_with_a_new_revision(stage: str) -> None:
    named = re.search(r"--revision (\d+)$", BODIES[stage]["cmd"])
    assert bool(named) == (stage in ("evaluate", "report", "bundle"))
    assert named is None or int(named[1]) == REVISIONS[stage]


def test_every_stage_has_a_revision() -> None:
    assert REVISIONS.keys() == STAGES.keys() | TASK_STAGES.keys()


def parameters(stage: str) -> dict[str, set[str]]:
    """The sections that a stage declares, each with the keys that it names; none: all of them."""
    found: dict[str, set[str]] = {}
    for parameter in BODIES[stage].get("params", []):
        section, _, key = parameter.partition(".")
        found.setdefault(section, set()).update({key} - {""})
    return found


@pytest.mark.parametrize("stage", BODIES)
def test_parameters_are_sections_of_the_configuration_or_keys_of_them(stage: str) -> None:
    for section, keys in parameters(stage).items():
        field = Config.model_fields[section]
        assert keys <= set(getattr(field.annotation, "model_fields", {}))


@pytest.mark.parametrize("stage", BODIES)
def test_a_stage_declares_what_its_module_reads(stage: str) -> None:
    module = (STAGES | TASK_STAGES)[stage].partition(":")[0]
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    read = {name for name in Config.model_fields if f"config.{name}." in source or f"config.{name})" in source}
    declared = parameters(stage)
    # The stream's order reaches a task's stages through `previous` and the folder in their dependencies.
    # Limits of an image refuse one in `ingest`; they change none that was learned.
    harmless = HARMLESS | ({"data"} if stage in ("finetune", "signature") else set())
    assert read - declared.keys() - harmless <= ({"stream"} if stage in TASK_STAGES else set())
    for section, keys in declared.items():
        assert not keys or set(re.findall(rf"config\.{section}\.(\w+)", source)) <= keys
