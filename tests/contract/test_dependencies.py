"""dvc.yaml against the code: a stage depends on what it imports, and declares what it reads of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML

from components.config import Config
from components.stages import STAGES, TASK_STAGES

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
BODIES = {name: stage.get("do", stage) for name, stage in PIPELINE.items()}
GRAPH = grimp.build_graph("components")
# They decide nothing of what an artefact holds: its values come from params.yaml, which DVC tracks by itself.
PLUMBING = {"components", "components.config", "components.errors"}
HARMLESS = {"cache"}  # sections of params.yaml that change no result: another size must not make DVC learn again


def test_every_stage_is_in_dvc_yaml() -> None:
    assert set(PIPELINE) == STAGES.keys() | TASK_STAGES.keys()


@pytest.mark.parametrize("stage", BODIES)
def test_a_stage_depends_on_all_the_code_it_imports(stage: str) -> None:
    module = (STAGES | TASK_STAGES)[stage].partition(":")[0]
    imported = {module, *GRAPH.find_upstream_modules(module)} - PLUMBING
    listed = {dep.removesuffix(".py").replace("/", ".") for dep in BODIES[stage]["deps"] if dep.endswith(".py")}
    assert listed == imported


@pytest.mark.parametrize("stage", BODIES)
def test_parameters_are_sections_of_the_configuration(stage: str) -> None:
    assert set(BODIES[stage].get("params", [])) <= set(Config.model_fields)


@pytest.mark.parametrize("stage", BODIES)
def test_a_stage_declares_the_sections_that_its_module_reads(stage: str) -> None:
    module = (STAGES | TASK_STAGES)[stage].partition(":")[0]
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    read = {name for name in Config.model_fields if f"config.{name}." in source or f"config.{name})" in source}
    declared = set(BODIES[stage].get("params", [])) | HARMLESS
    # The stream's order reaches a task's stages through `previous` and the folder in their dependencies.
    assert read - declared <= ({"stream"} if stage in TASK_STAGES else set())
