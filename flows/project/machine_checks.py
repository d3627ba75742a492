"""What `intaglio doctor` asks of the machine and of the installation, whatever the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.project.check_result import CheckResult

# In a process of its own: other checks run while it imports, and a broken driver may hang or crash it.
_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    there = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if there else []
texts = [" ".join(str(one.message).split()) for one in said]
warned = [text for text in texts if "CUDA" in text or "driver" in text]
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": names,
                  "mps": torch.backends.mps.is_available(), "warned": warned}))
"""
_PATIENCE_SECONDS = 60.0
_INSTALL = "pip install --upgrade intaglio"


def check_python(running: tuple[int, ...] | None = None) -> CheckResult:
    """Compare the interpreter with the range that the package declares."""
    shown = ".".join(str(part) for part in running or sys.version_info[:3])
    intaglio = _distribution()
    if intaglio is None:
        return CheckResult("python", "FAIL", f"{shown}; intaglio is not installed here", "pip install intaglio")
    asked = SpecifierSet(str(intaglio.metadata["Requires-Python"] or ""))
    found = f"{shown} at {sys.executable}, intaglio {intaglio.version}"
    if asked.contains(shown):
        return CheckResult("python", "ok", found)
    return CheckResult(
        "python", "FAIL", f"{found}; expected Python {asked}", f"make an environment with Python {asked}"
    )


def check_packages(installed: Callable[[str], str] = installed_version) -> CheckResult:
    """Compare the installed packages with the ranges in pyproject.toml, as the installation recorded them.

    Args:
        installed: returns the version of a package.
    """
    intaglio, wrong, wanted, count = _distribution(), list[str](), list[str](), 0
    for text in (intaglio.requires if intaglio else None) or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = installed(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (expected {requirement.specifier or 'any'})")
            wanted.append(f"'{requirement.name}{requirement.specifier}'")
    if wrong:
        return CheckResult("packages", "FAIL", ", ".join(wrong), f"pip install {' '.join(wanted)}")
    if not count:
        return CheckResult("packages", "FAIL", "intaglio's own requirements are not known", _INSTALL)
    return CheckResult("packages", "ok", f"{count} packages have the versions that intaglio asks for")


@dataclass(frozen=True)
class TorchProbe:
    """A process that imports torch and reports its devices."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, program: str = _TORCH) -> TorchProbe:
        """Start it; other checks run meanwhile."""
        command = [sys.executable, "-c", program]
        return cls(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def check(self, wanted: str = "auto", patience: float = _PATIENCE_SECONDS) -> CheckResult:
        """Wait for the report and compare it with the device that the project asks for.

        Args:
            wanted: `device` in params.yaml.
            patience: seconds to wait at most.
        """
        with self.process:
            try:
                output, errors = self.process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                return CheckResult(
                    "device", "FAIL", f"torch did not load in {patience:g} s", "check the driver: nvidia-smi"
                )
        if self.process.returncode:
            last = (errors.strip().splitlines() or [f"exit code {self.process.returncode}"])[-1]
            return CheckResult("device", "FAIL", f"torch does not load: {last}", "pip install --force-reinstall torch")
        return device_check(json.loads(output.splitlines()[-1]), wanted, _driver())


def device_check(report: dict[str, Any], wanted: str, driver: str) -> CheckResult:
    """Judge what torch reported about its devices.

    Args:
        report: torch, cuda, gpus, mps and warned.
        wanted: `device` in params.yaml.
        driver: version of the NVIDIA driver; "" where there is none.
    """
    there = {"auto": True, "cpu": True, "cuda": bool(report["gpus"]), "mps": bool(report["mps"])}
    used = wanted if wanted != "auto" else next(name for name in ("cuda", "mps", "cpu") if there[name])
    found = f"torch {report['torch']} on {', '.join(report['gpus']) if used == 'cuda' else used}"
    found += f", driver {driver}" if driver else ""
    if not there.get(wanted, False):
        fix = "write `device: auto` in params.yaml, or install torch for this device: https://pytorch.org"
        return CheckResult("device", "FAIL", f"{found}; params.yaml asks for {wanted!r}, which is not here", fix)
    if driver and not report["gpus"]:
        why = (
            "; ".join(report["warned"])
            or f"torch is built {'for CUDA ' + report['cuda'] if report['cuda'] else 'without CUDA'}"
        )
        fix = "install a torch whose CUDA this driver knows: https://pytorch.org"
        return CheckResult("device", "warn", f"{found}; the GPU is not used: {why}", fix)
    return CheckResult("device", "ok", found)


def check_tools() -> CheckResult:
    """Look for git and DVC, which every run calls."""
    missing = [name for name, there in (("git", shutil.which("git")), ("dvc", find_spec("dvc"))) if not there]
    if missing:
        fix = " and ".join(
            {"git": "install git with the system's packages", "dvc": "pip install dvc"}[m] for m in missing
        )
        return CheckResult("tools", "FAIL", f"{' and '.join(missing)} not found", fix)
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return CheckResult("tools", "ok", f"{git}, dvc {installed_version('dvc')}")


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, env={**os.environ})
    except (OSError, subprocess.TimeoutExpired):
        return "that does not answer"
    return (done.stdout.splitlines() or [""])[0].strip() if done.returncode == 0 else "that does not answer"


def _distribution() -> Distribution | None:
    try:
        return distribution("intaglio")
    except PackageNotFoundError:
        return None
