"""Follow the champion: load a new version beside the old one, try it, and only then serve it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flows.serving.metrics import Metrics
from flows.serving.served_model import ServedModel, Source

_log = logging.getLogger(__name__)

_LONGEST_PAUSE = 300.0  # seconds between two attempts at the same broken version


@dataclass(frozen=True)
class _Refusal:
    """A version that could not be loaded, and when to try it again."""

    version: str
    reason: str
    pause: float
    retry_at: float


@dataclass
class Follower:
    """Keeps `model` at the version that the source names; polled from one thread.

    While a version is loaded, two are in memory. A broken one changes nothing but `trouble`; it is tried again after
    pauses that double, since its files may be repaired.

    Attributes:
        source: Names the version to serve.
        load: Loads a version, and raises where it is broken.
        metrics: Counts versions that were loaded or refused.
        poll_seconds: Between two checks.
        model: The version that is served; None until the first is loaded.
        unreachable: Why the source could not be asked; "" if it could.
    """

    source: Source
    load: Callable[[str], ServedModel]
    metrics: Metrics
    poll_seconds: float
    model: ServedModel | None = None
    unreachable: str = ""
    _refusal: _Refusal | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def trouble(self) -> str:
        """Why the version that the source names is not served; "" if it is."""
        refusal = self._refusal
        return self.unreachable or (f"version {refusal.version}: {refusal.reason}" if refusal else "")

    def follow(self) -> None:
        """Check again and again until `stop`."""
        while not self._stop.wait(self.poll_seconds):
            self.check()

    def stop(self) -> None:
        """End `follow` at its next pause."""
        self._stop.set()

    def check(self) -> None:
        """Ask the source once which version to serve, and serve it if it is another one."""
        try:
            version = self.source.version_to_serve()
        except Exception as error:  # a registry that cannot be reached must not end the service
            self.metrics.registry_error()
            self._note_unreachable(_line(error))
            return
        self._note_unreachable("")
        if self.model is not None and version == self.model.version:
            self._refusal = None
        elif not self._is_refused(version):
            self._take(version)

    def _is_refused(self, version: str) -> bool:
        refusal = self._refusal
        return refusal is not None and refusal.version == version and time.monotonic() < refusal.retry_at

    def _take(self, version: str) -> None:
        start = time.monotonic()
        try:
            model = self.load(version)
        except Exception as error:  # a bundle of another format fails in any way: the old version stays
            self._refuse(version, _line(error))
            return
        self._refusal = None
        self.model = model  # one reference: a request sees the old version or the new one
        self.metrics.loaded(version)
        _log.info("version %s is served, loaded in %.1f s", version, time.monotonic() - start)

    def _refuse(self, version: str, reason: str) -> None:
        before = self._refusal
        again = before is not None and before.version == version
        pause = min(_LONGEST_PAUSE, 2 * before.pause) if before and again else self.poll_seconds
        self._refusal = _Refusal(version, reason, pause, time.monotonic() + pause)
        self.metrics.refused()
        if self.model:
            _log.error("version %s cannot be served: %s; version %s stays", version, reason, self.model.version)

    def _note_unreachable(self, reason: str) -> None:
        if reason and reason != self.unreachable and self.model:
            _log.error("the registry does not say which version to serve: %s", reason)
        self.unreachable = reason


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
