"""The server's figures, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        """Declare every figure."""
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("intaglio_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "intaglio_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter(
            "intaglio_images",
            "Images answered: known, unknown (no task knows it) or broken.",
            ["outcome"],
            registry=registry,
        )
        self._batch_images = Histogram(
            "intaglio_batch_images", "Images predicted together.", buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "intaglio_batch_seconds", "The model's time for a batch.", buckets=_SECONDS, registry=registry
        )
        self._depth = Gauge("intaglio_queue_images", "Images accepted and not answered yet.", registry=registry)
        self._model = Gauge("intaglio_model_info", "1 for the version that is served.", ["version"], registry=registry)
        self._reloads = Counter(
            "intaglio_model_loads",
            "Versions loaded, or refused because they are broken.",
            ["outcome"],
            registry=registry,
        )
        self._source_errors = Counter(
            "intaglio_registry_errors", "Times the registry could not be asked.", registry=registry
        )

    def depth_of(self, depth: Callable[[], float]) -> None:
        """Set the function that reads the depth of the queue."""
        self._depth.set_function(depth)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            route: one of the known routes, or `other`.
            status: of the answer.
            seconds: from the request's head to its answer.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def image(self, outcome: str) -> None:
        """Count an image by its outcome: `known`, `unknown` or `broken`."""
        self._images.labels(outcome).inc()

    def batch(self, size: int, seconds: float) -> None:
        """Count a predicted batch, its images and its seconds."""
        self._batch_images.observe(size)
        self._batch_seconds.observe(seconds)

    def loaded(self, version: str) -> None:
        """Record the version that is served from now on."""
        self._model.clear()
        self._model.labels(version).set(1)
        self._reloads.labels("loaded").inc()

    def refused(self) -> None:
        """Count a version that is broken."""
        self._reloads.labels("refused").inc()

    def registry_error(self) -> None:
        """Count a failed query of the registry."""
        self._source_errors.inc()

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)
