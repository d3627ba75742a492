"""The server's state and its one task, apart from HTTP: images in, predictions and their version out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from components.config import UNKNOWN
from components.data.images import ImageError
from components.inference.predictor import Prediction
from flows.serving.batcher import AnswerOptions, MicroBatcher
from flows.serving.errors import unavailable
from flows.serving.metrics import Metrics
from flows.serving.reload import Follower
from flows.serving.served_model import ServedModel

Answer = Prediction | ImageError


@dataclass(frozen=True)
class Answers:
    """A request's images in order: a prediction each, or why its image has none; all by one version."""

    version: str
    rows: tuple[Answer, ...]


@dataclass
class Service:
    """What the routes share. Only the event loop calls its methods.

    Attributes:
        batcher: Decodes and predicts.
        follower: Has the version that is served.
        metrics: Counts images by outcome.
        body_seconds: Seconds that a request's body may take to arrive.
        draining: Whether a signal to stop has come.
        started: Of the process, on the monotonic clock.
    """

    batcher: MicroBatcher
    follower: Follower
    metrics: Metrics
    body_seconds: float
    draining: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> ServedModel:
        """Version served now.

        Raises:
            RequestError: 503, none is loaded yet.
        """
        if self.follower.model is None:
            raise unavailable("the model is being loaded")
        return self.follower.model

    @property
    def status(self) -> str:
        """State: `ready`; `loading` before the first version is loaded; `draining` after a signal to stop."""
        if self.draining:
            return "draining"
        return "ready" if self.follower.model else "loading"

    async def answer(self, images: Sequence[object], options: AnswerOptions) -> Answers:
        """Predict a request's images. Cancelling this cancels the work that has not begun.

        Raises:
            RequestError: 503, no room or no model; 413, more images than the server ever holds.
        """
        model = self.model
        futures = self.batcher.submit(images, model, options)
        try:
            rows = tuple([await self._row(future) for future in futures])
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return Answers(model.version, rows)

    async def _row(self, future: Future[Prediction]) -> Answer:
        try:
            prediction = await asyncio.wrap_future(future)
        except ImageError as error:
            self.metrics.image("broken")
            return error
        self.metrics.image("unknown" if prediction.task == UNKNOWN else "known")
        return prediction

    def close(self, follower: threading.Thread) -> None:
        """Stop following, finish accepted images, and end the threads."""
        self.follower.stop()
        follower.join()
        self.batcher.close()
