"""Answers to a request, by the engine that it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from flows.prediction.request import DASK, PredictionRequest

if TYPE_CHECKING:
    from components.inference.batch import FileAnswer


def answered(request: PredictionRequest, paths: Iterator[str]) -> Iterator[FileAnswer]:
    """An answer for every path, in order, by the engine that is asked for."""
    if request.engine == DASK:
        from flows.prediction.dask_cluster import answers_by_cluster

        yield from answers_by_cluster(request, paths)
        return
    from components.inference.batch import answers
    from components.inference.decoding import Decoders
    from components.inference.predictor import Predictor

    predictor = Predictor.load(request.bundle, request.device, request.precision)
    with closing(Decoders(predictor.image_size, predictor.limits, request.workers)) as decoders:
        yield from answers(predictor, decoders.batches(paths), request.top, request.force)
