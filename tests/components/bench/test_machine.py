"""Memory is that of the process asked about, not of the one that asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.bench.machine import cpu_name, peak_memory_of
from components.errors import IntaglioError

MODULE = """
import sys
from components.bench.machine import print_peak_memory
held = bytearray(b"x" * (int(sys.argv[1]) << 20))
print("other output")
print_peak_memory()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that holds as many MB as it is told."""
    (tmp_path / "holds_memory.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "holds_memory"


def test_the_peak_is_that_of_the_process_and_not_of_its_parent(module: str) -> None:
    ours = np.ones(200 << 17)  # 200 MB, which a child's getrusage would count too
    little, much = (peak_memory_of(module, megabytes) for megabytes in (1, 101))
    assert 95 < much - little < 320
    assert little < ours.nbytes / 2**20


def test_a_process_that_fails_says_why(module: str) -> None:
    with pytest.raises(IntaglioError, match=r"holds_memory many: failed \(1\)[\s\S]*invalid literal"):
        peak_memory_of(module, "many")


def test_the_processor_has_a_name() -> None:
    assert cpu_name()
