"""Requests for the load generator: real test images in every form that the server reads, and broken ones among them."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.config import Config
from components.data.images import open_image
from components.data.task_data import TaskData
from components.inference.predictor import Predictor
from flows.bench.load_generator import Planned

_BOUNDARY = "intaglio-boundary"
_EVERY = 5  # one request in so many has a broken image
_FORMS = ("raw", "upload", "json", "list", "invocations")


def test_files(root: Path, config: Config, most: int) -> list[Path]:
    """List test images of all tasks, in an order drawn once.

    Args:
        root: a project that has been run.
        config: its configuration.
        most: images at most.
    """
    paths = [path for task in config.tasks for path in TaskData.read(root, config, task, "test").paths]
    order = np.random.default_rng(0).permutation(len(paths))
    return [paths[row] for row in order[:most]]


def plain_plan(files: Sequence[Path], predictor: Predictor) -> list[Planned]:
    """Plan a request for each image, with the answer that the predictor gives directly."""
    images = [open_image(path, predictor.limits) for path in files]
    found = [(one.task, one.label) for one in predictor.predict(images)]
    return [
        Planned("/predict", "image/png", path.read_bytes(), 200, (answer,))
        for path, answer in zip(files, found, strict=True)
    ]


def mixed_plan(plain: Sequence[Planned]) -> list[Planned]:
    """Plan the same images in all forms in turn; every fifth request has a broken image, alone or beside a good one."""
    broken, plan = broken_images(plain[0].body), []
    for number, planned in enumerate(plain):
        form = _FORMS[number % len(_FORMS)]
        known = [(planned.body, planned.answers[0])]
        if number % _EVERY == number // len(_FORMS) % _EVERY:
            known = [
                (broken[number // _EVERY**2 % len(broken)], (None, None)),
                *(known if form in ("list", "invocations") else []),
            ]
        plan.append(_request(form, known))
    return plan


def broken_images(whole: bytes) -> list[bytes]:
    """Files that are no images: cut off, noise, text, empty, and a header that claims 10 gigapixels."""
    noise = np.random.default_rng(1).bytes(2000)
    return [whole[: len(whole) // 2], noise, b"<html>not an image</html>", b"", _bomb()]


def _bomb() -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def _request(form: str, images: Sequence[tuple[bytes, tuple[str | None, str | None]]]) -> Planned:
    contents, answers = [content for content, _ in images], tuple(answer for _, answer in images)
    one = 200 if answers[0] != (None, None) else 422
    texts = [b64encode(content).decode() for content in contents]
    if form == "raw":
        return Planned("/predict", "image/png", contents[0], one, answers)
    if form == "upload":
        return Planned("/predict", f"multipart/form-data; boundary={_BOUNDARY}", _multipart(contents[0]), one, answers)
    if form == "json":
        return _json("/predict", {"image": texts[0]}, one, answers)
    if form == "list":
        return _json("/predict", {"images": texts}, 200, answers)
    table = {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}}
    return _json("/invocations", table, 200, answers)


def _json(path: str, value: object, status: int, answers: tuple[tuple[str | None, str | None], ...]) -> Planned:
    return Planned(path, "application/json", json.dumps(value).encode(), status, answers)


def _multipart(content: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
