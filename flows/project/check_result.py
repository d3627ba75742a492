"""One line of `intaglio doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]
GB = 10**9


@dataclass(frozen=True)
class CheckResult:
    """What was looked at and found; `fix` says what to do about it, and is empty where all is well."""

    name: str
    state: State
    found: str
    fix: str = ""

    @property
    def line(self) -> str:
        """Return the check in one line."""
        return f"{self.state:<4}  {self.name:<13}  {self.found}" + (f"; fix: {self.fix}" if self.fix else "")


def gigabytes(count: int) -> str:
    """Return a number of bytes for a person: `1.2 GB`."""
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 10**6:.1f} MB"
