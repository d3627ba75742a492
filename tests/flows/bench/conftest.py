"""The learned stream of tests/components, for benches that need the pipeline around them."""

from __future__ import annotations

from tests.components.conftest import learned_template, stream_template, tiny_weights  # noqa: F401 - fixtures
