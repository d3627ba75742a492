"""Micro-batching: many requests' images decoded side by side, and predicted together by one thread.

    submit -> decoders (threads) -> waiting images -> the model's thread, up to `batch` at a time -> futures

An idle server predicts an image at once: the model's thread waits for more images, `delay` seconds at most, and only
while others are being received or decoded. At most `limit` images are held; more are refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from components.arrays import Pixels
from components.inference.predictor import Prediction
from flows.serving.errors import overloaded, too_many, unavailable
from flows.serving.served_model import ServedModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerOptions:
    """How a request's images are predicted: `top` guesses each; with `force` the best guess also where unknown."""

    top: int = 1
    force: bool = False


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A decoded image that waits for its batch; it is predicted by the version that it was decoded for."""

    pixels: Pixels
    model: ServedModel
    options: AnswerOptions
    answer: Future[Prediction]


@dataclass
class _Load:
    """Counts of what the batcher holds: requests being received, images being decoded, images not answered yet."""

    receiving: int = 0
    decoding: int = 0
    images: int = 0


class MicroBatcher:
    """The queue and the threads."""

    def __init__(
        self, batch: int, delay: float, limit: int, decoders: int, on_batch: Callable[[int, float], None]
    ) -> None:
        """Start the threads.

        Args:
            batch: images predicted together at most.
            delay: seconds that an image waits for others at most.
            limit: images held at most.
            decoders: threads that decode.
            on_batch: called with the size of every batch and the seconds it took.
        """
        self.batch, self.delay, self.limit = batch, delay, limit
        self._on_batch = on_batch
        self._load = _Load()
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()  # guards the three fields around it; only the model's thread waits
        self._closed = False
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="decoder")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Images that were accepted and have no result yet."""
        return self._load.images

    @property
    def ready(self) -> int:
        """Decoded images that wait for their batch."""
        return len(self._waiting)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Count a request whose body is being read as one image, for which the next batch waits a moment.

        Raises:
            RequestError: 503, the batcher is full.
        """
        with self._changed:
            if self._load.receiving + self._load.images >= self.limit:
                raise overloaded(self.limit)
            self._load.receiving += 1
        try:
            yield
        finally:
            with self._changed:
                self._load.receiving -= 1
                self._changed.notify()

    def submit(self, images: Sequence[object], model: ServedModel, options: AnswerOptions) -> list[Future[Prediction]]:
        """Accept a request's images, all or none; returns a future for each prediction, in order.

        A future fails with ImageError where its image is broken. Cancelling a future saves the work not begun yet.

        Args:
            images: still encoded.
            model: the version that decodes and predicts them.
            options: the same for all of them.

        Raises:
            RequestError: 413, more images than the batcher ever holds; 503, no room now, or closed.
        """
        if len(images) > self.limit:
            raise too_many(self.limit)
        with self._changed:
            if self._closed:
                raise unavailable("the server is stopping")
            if self._load.images + len(images) > self.limit:
                raise overloaded(self.limit)
            self._load.images += len(images)
            self._load.decoding += len(images)
        answers: list[Future[Prediction]] = [Future() for _ in images]
        for image, answer in zip(images, answers, strict=True):
            self._pool.submit(self._decode, image, model, options, answer)
        return answers

    def close(self) -> None:
        """Refuse new images, finish those that were accepted, and end the threads."""
        with self._changed:
            self._closed = True
        self._pool.shutdown()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _decode(self, image: object, model: ServedModel, options: AnswerOptions, answer: Future[Prediction]) -> None:
        pixels, error = None, None
        if not answer.cancelled():
            try:
                pixels = model.pixels(image)
            except Exception as raised:  # a decoder's bug fails one image, and must not stop the count
                error = raised
        with self._changed:
            self._load.decoding -= 1
            if pixels is None:
                self._load.images -= 1
            else:
                self._waiting.append(_Waiting(pixels, model, options, answer))
            self._changed.notify()
        if pixels is None and answer.set_running_or_notify_cancel():
            answer.set_exception(error)

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Predict one batch; its references, to an old version too, end with this call, before the next wait."""
        batch = self._next()
        if batch:
            self._predict(batch)
        return bool(batch)

    def _next(self) -> list[_Waiting]:
        """Wait for the next batch, until nothing else is worth waiting for; empty once closed."""
        with self._changed:
            while not self._waiting:
                if self._closed and not self._load.decoding:
                    return []
                self._changed.wait()
            deadline = time.monotonic() + self.delay
            while len(self._waiting) < self.batch and self._load.receiving + self._load.decoding:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            return self._take()

    def _take(self) -> list[_Waiting]:
        """Take the oldest image, and those that can be predicted together with it."""
        first, rest = self._waiting[0], deque[_Waiting]()
        batch: list[_Waiting] = []
        for image in self._waiting:
            fits = image.model is first.model and image.options.force == first.options.force and len(batch) < self.batch
            (batch if fits else rest).append(image)
        self._waiting = rest
        return batch

    def _predict(self, batch: list[_Waiting]) -> None:
        due = [image for image in batch if image.answer.set_running_or_notify_cancel()]
        start = time.perf_counter()
        found: list[Prediction] | Exception
        try:
            found = _predictions(due)
        except Exception as error:  # whatever goes wrong in the model, the thread must go on
            _log.exception("a batch of %d images failed", len(due))
            found = error
        self._on_batch(len(due), time.perf_counter() - start)
        with self._changed:  # before the results: a client that has one may send the next image at once
            self._load.images -= len(batch)
        for row, image in enumerate(due):
            if isinstance(found, Exception):
                image.answer.set_exception(found)
            else:
                image.answer.set_result(found[row])


def _predictions(batch: Sequence[_Waiting]) -> list[Prediction]:
    if not batch:
        return []
    first, most = batch[0], max(image.options.top for image in batch)
    pixels = np.stack([image.pixels for image in batch])
    found = first.model.predictor.predict_pixels(pixels, top=most, force=first.options.force)
    return [replace(one, top=one.top[: image.options.top]) for image, one in zip(batch, found, strict=True)]
