"""Micro-batching: which images are predicted together, when, and what affects what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.arrays import Pixels
from components.data.images import ImageError
from components.inference.predictor import Prediction
from flows.serving.batcher import AnswerOptions, MicroBatcher
from flows.serving.errors import RequestError
from flows.serving.served_model import ServedModel

PATIENCE = 20.0  # seconds; a busy machine may need some


@dataclass
class Gate:
    """Stands for a model: an image is a number, its label the same number; a negative number is a broken image.

    Predicting waits for `open`; the number 13 makes a batch fail.
    """

    open: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[tuple[list[int], bool]] = field(default_factory=list)
    decode: Callable[[int], None] = lambda _image: None

    def pixels(self, image: int) -> Pixels:
        self.decode(image)
        if image < 0:
            raise ImageError(f"broken {image}")
        return np.array([image])

    @property
    def predictor(self) -> Gate:
        return self

    def predict_pixels(self, pixels: Pixels, top: int, force: bool) -> list[Prediction]:
        self.batches.append((pixels[:, 0].tolist(), force))
        self.entered.release()
        assert self.open.wait(PATIENCE)
        if 13 in pixels:
            raise MemoryError("13")
        guesses = (("task", "class", 0.5),) * top
        return [Prediction("task", str(number), 0.5, 0.5, 0.5, (), guesses) for number in pixels[:, 0]]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make() -> Iterator[Callable[..., MicroBatcher]]:
    made: list[MicroBatcher] = []

    def make(batch: int = 4, delay: float = 0.0, limit: int = 100, decoders: int = 2) -> MicroBatcher:
        made.append(MicroBatcher(batch, delay, limit, decoders, lambda _size, _seconds: None))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


DEFAULT = AnswerOptions()


def send(
    batcher: MicroBatcher, model: Gate, images: Sequence[int], options: AnswerOptions = DEFAULT
) -> list[Future[Prediction]]:
    return batcher.submit(images, cast(ServedModel, model), options)


def labels(answers: Sequence[Future[Prediction]]) -> list[Any]:
    return [answer.result(PATIENCE).label for answer in answers]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_an_idle_server_predicts_at_once_whatever_the_delay(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    gate.open.set()
    batcher, start = make(delay=PATIENCE), time.monotonic()
    assert labels(send(batcher, gate, [7])) == ["7"]
    assert time.monotonic() - start < PATIENCE / 2


def test_it_waits_for_a_request_on_its_way_but_not_for_ever(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    gate.open.set()
    batcher = make(delay=0.2)
    with batcher.receiving():  # another request's body is being read
        start = time.monotonic()
        assert labels(send(batcher, gate, [7])) == ["7"]
        assert time.monotonic() - start >= 0.2


def test_it_waits_for_the_images_of_the_same_request(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    gate.open.set()
    gate.decode = lambda image: time.sleep(0.02 * image)
    batcher = make(batch=8, delay=PATIENCE, decoders=1)
    assert labels(send(batcher, gate, [0, 1, 2])) == ["0", "1", "2"]
    assert gate.batches == [([0, 1, 2], False)]


def test_what_comes_while_a_batch_runs_is_the_next_batch(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    batcher = make(batch=4)
    first = send(batcher, gate, [0])
    assert gate.entered.acquire(timeout=PATIENCE)
    later = [answer for number in range(1, 6) for answer in send(batcher, gate, [number])]
    until(lambda: batcher.ready == 5)
    gate.open.set()
    assert labels(first + later) == ["0", "1", "2", "3", "4", "5"]
    assert [len(batch) for batch, _ in gate.batches] == [1, 4, 1]


def test_only_what_fits_together_is_predicted_together(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    batcher, newer = make(batch=8), Gate()
    newer.open.set()
    answers = send(batcher, gate, [0])
    assert gate.entered.acquire(timeout=PATIENCE)
    for number in (1, 2):
        answers += send(batcher, gate, [number])
        until(lambda number=number: batcher.ready == 3 * (number - 1) + 1)
        answers += send(batcher, gate, [10 + number], AnswerOptions(force=True))
        until(lambda number=number: batcher.ready == 3 * (number - 1) + 2)
        answers += send(batcher, newer, [20 + number])
        until(lambda number=number: batcher.ready == 3 * number)
    gate.open.set()
    assert labels(answers) == ["0", "1", "11", "21", "2", "12", "22"]
    assert gate.batches == [([0], False), ([1, 2], False), ([11, 12], True)]
    assert newer.batches == [([21, 22], False)]


def test_each_image_gets_as_many_guesses_as_it_asked_for(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    batcher = make()
    first = send(batcher, gate, [0])
    assert gate.entered.acquire(timeout=PATIENCE)
    answers = [send(batcher, gate, [top], AnswerOptions(top=top))[0] for top in (1, 3, 2)]
    until(lambda: batcher.ready == 3)
    gate.open.set()
    assert [len(answer.result(PATIENCE).top) for answer in (*first, *answers)] == [1, 1, 3, 2]
    assert len(gate.batches) == 2


def test_a_broken_image_fails_alone(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    gate.open.set()
    good, bad, other = send(make(), gate, [1, -1, 2])
    assert labels([good, other]) == ["1", "2"]
    with pytest.raises(ImageError, match="broken -1"):
        bad.result(PATIENCE)


def test_the_model_s_thread_outlives_a_batch_that_fails(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    gate.open.set()
    batcher = make()
    with pytest.raises(MemoryError):
        send(batcher, gate, [13])[0].result(PATIENCE)
    assert labels(send(batcher, gate, [14])) == ["14"]
    assert batcher.depth == 0


def test_a_full_batcher_refuses_and_recovers(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    batcher = make(limit=3)
    answers = send(batcher, gate, [0, 1])
    with pytest.raises(RequestError, match="overloaded") as caught:
        send(batcher, gate, [2, 3])
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    with batcher.receiving(), pytest.raises(RequestError, match="overloaded"), batcher.receiving():
        pass
    with pytest.raises(RequestError, match="more than 3 images") as caught:
        send(batcher, gate, [1, 2, 3, 4])
    assert (caught.value.status, caught.value.retry_after) == (413, None)
    gate.open.set()
    assert labels(answers) == ["0", "1"]
    until(lambda: batcher.depth == 0)
    assert labels(send(batcher, gate, [2, 3, 4])) == ["2", "3", "4"]


def test_cancelled_images_are_not_predicted_and_leave_their_place(
    make: Callable[..., MicroBatcher], gate: Gate
) -> None:
    batcher = make(limit=3)
    first, left = send(batcher, gate, [0]), []
    assert gate.entered.acquire(timeout=PATIENCE)
    left = send(batcher, gate, [1, 2])
    assert all(answer.cancel() for answer in left)
    with pytest.raises(RequestError, match="overloaded"):  # their memory is in use until the model's thread sees them
        send(batcher, gate, [3])
    gate.open.set()
    assert labels(first) == ["0"]
    until(lambda: batcher.depth == 0)
    assert gate.batches == [([0], False)]
    assert labels(send(batcher, gate, [3])) == ["3"]


def test_closing_answers_what_was_accepted(make: Callable[..., MicroBatcher], gate: Gate) -> None:
    batcher = make(batch=2)
    answers = send(batcher, gate, range(5))
    threading.Timer(0.05, gate.open.set).start()
    batcher.close()
    assert [answer.done() for answer in answers] == [True] * 5
    with pytest.raises(RequestError, match="stopping"):
        send(batcher, gate, [6])


@settings(max_examples=25)
@given(
    requests=st.lists(st.lists(st.integers(-3, 40), min_size=1, max_size=5), max_size=12),
    batch=st.integers(1, 6),
    decoders=st.integers(1, 3),
    drop=st.sets(st.integers(0, 11)),
)
def test_every_image_gets_its_own_answer_or_error(
    requests: list[list[int]], batch: int, decoders: int, drop: set[int]
) -> None:
    gate, batcher = Gate(), MicroBatcher(batch, 0.001, 1000, decoders, lambda _size, _seconds: None)
    gate.open.set()
    try:
        sent = [send(batcher, gate, images, AnswerOptions(force=len(images) > 3)) for images in requests]
        for number in drop & set(range(len(sent))):
            for answer in sent[number]:
                answer.cancel()
        wait_for([answer for answers in sent for answer in answers], PATIENCE)
        until(lambda: batcher.depth == 0)
    finally:
        batcher.close()
    for number, (images, answers) in enumerate(zip(requests, sent, strict=True)):
        for image, answer in zip(images, answers, strict=True):
            if answer.cancelled():
                assert number in drop
            elif image < 0:
                assert isinstance(answer.exception(), ImageError)
            else:
                company = next(together for together, _ in gate.batches if image in together)
                assert answer.exception() is not None or answer.result().label == str(image)
                assert answer.exception() is None or image == 13 or any(13 in together for together, _ in gate.batches)
                assert len(company) <= batch
