"""A training step on a GPU as one CUDA graph.

A step is hundreds of small kernels, and launching each from Python takes longer than running it. A CUDA graph records
them once and launches them together (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_WARM_UPS = 3  # runs before the capture, so that what libraries allocate at first use is no part of the graph


class CudaGraphStep:
    """The loss of a batch and its gradients as one CUDA graph, for batches of one shape.

    It computes what `loss_of` and its backward pass compute, and likewise gives the `learned` parameters new
    gradients. The graph reads the parameters' values where they lie, so an optimizer may change them in place.
    """

    def __init__(
        self, loss_of: Callable[[Tensor, Tensor], Tensor], learned: Sequence[nn.Parameter], x: Tensor, y: Tensor
    ) -> None:
        """Record a step. The gradients of `learned` are undefined afterwards.

        Args:
            loss_of: the loss () of a batch (x, y).
            learned: the parameters that get gradients.
            x: the inputs of a batch; others must have this shape and dtype.
            y: its targets, likewise.

        Raises:
            RuntimeError: an operation cannot be recorded, or memory does not hold a second copy of the results.
        """
        self._learned, self._x, self._y = learned, x.clone(), y.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._compute(loss_of)
        torch.cuda.current_stream().wait_stream(side)
        _clear_gradients(learned)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._compute(loss_of)
        self._gradients = [parameter.grad for parameter in learned]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the loss () of a batch; the parameters hold its gradients until the next call."""
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        for parameter, gradient in zip(self._learned, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()

    def _compute(self, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        _clear_gradients(self._learned)
        loss = loss_of(self._x, self._y)
        loss.backward()
        return loss.detach()


def record_step(
    loss_of: Callable[[Tensor, Tensor], Tensor], learned: Sequence[nn.Parameter], x: Tensor, y: Tensor
) -> CudaGraphStep | None:
    """Record a step on a GPU; return None on other devices, and where recording fails, which costs only time.

    Prints one line with the reason of a failure.

    Args:
        loss_of: the loss () of a batch (x, y).
        learned: the parameters that get gradients.
        x: the inputs of a batch.
        y: its targets.
    """
    if x.device.type != "cuda":
        return None
    reason = "its memory might not hold one"
    try:
        if 2 * _largest_step(x.device) <= _free(x.device):  # the graph's memory stays allocated during validation
            return CudaGraphStep(loss_of, learned, x, y)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        _clear_gradients(learned)
    print(f"going on without a recording of the step on {x.device}: {reason}", flush=True)
    return None


def _largest_step(device: torch.device) -> int:
    """Return the bytes that steps took at most so far, beside what stays allocated."""
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)


def _free(device: torch.device) -> int:
    """Return the free bytes of the device, after torch has returned those that it caches."""
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def _clear_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
