"""prefect.yaml, prefect.toml and what is kept out of git, against the code."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

from ruamel.yaml import YAML
from synthetic import REPOSITORY

from components.stages import STAGES, TASK_STAGES
from flows.planning.dag import DEVICE_STAGES
from flows.settings import quiet_environment


def python(code: str) -> str:
    """What a Python program prints that runs in the repository's folder, as a user without settings would run it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_deployment_leads_to_the_flow() -> None:
    (deployment,) = YAML(typ="safe").load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    load = "from prefect.flows import load_flow_from_entrypoint as load; "
    assert python(f"{load}print(load({deployment['entrypoint']!r}).name)") == "continual_finetuning"
    assert deployment["schedules"] == [{"cron": "0 3 * * *", "timezone": "UTC"}]


def test_prefect_stays_in_the_project_and_tells_nobody() -> None:
    settings = tomllib.loads((REPOSITORY / "prefect.toml").read_text())
    assert settings["server"]["ephemeral"] == {"enabled": True, "startup_timeout_seconds": 120}
    # `intaglio` and the `prefect` command in this folder see the same runs.
    assert quiet_environment(REPOSITORY)["PREFECT_HOME"] == str(REPOSITORY / settings["home"])
    code = "from prefect.settings import get_current_settings as s; print(s().home, s().server.analytics_enabled)"
    assert python(code).split() == [settings["home"], "False"]


def test_the_stages_that_share_the_device_exist() -> None:
    assert STAGES.keys() | TASK_STAGES.keys() >= DEVICE_STAGES


def test_nothing_of_mlruns_is_in_git_but_its_gitignore() -> None:
    assert (REPOSITORY / "mlruns" / ".gitignore").read_text() == "*\n!.gitignore\n"


def test_the_command_itself_imports_nothing_slow() -> None:
    slow = ("torch", "prefect", "mlflow", "dvc", "pandas")
    assert python(f"import sys, flows.cli.app; print([name for name in {slow} if name in sys.modules])") == "[]"
