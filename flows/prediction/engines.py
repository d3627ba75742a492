"""The engines that predict a request's images: decoding processes and one model here, or a cluster of workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from flows.prediction.request import DASK, PredictionRequest

if TYPE_CHECKING:
    from components.inference.batch import FileResult


def predict_paths(request: PredictionRequest, paths: Iterator[str]) -> Iterator[FileResult]:
    """Predict every path, in order, by the engine that the request names."""
    if request.engine == DASK:
        from flows.prediction.dask_cluster import predict_on_cluster

        yield from predict_on_cluster(request, paths)
        return
    from components.inference.batch import predict_batches
    from components.inference.decoding import Decoders
    from components.inference.predictor import Predictor

    predictor = Predictor.load(request.bundle, request.device, request.precision)
    with closing(Decoders(predictor.image_size, predictor.limits, request.workers)) as decoders:
        yield from predict_batches(predictor, decoders.batches(paths), request.top, request.force)
