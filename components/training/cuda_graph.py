"""A computation on a GPU, recorded once and launched whole: a step of training is hundreds of small kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_WARM_UPS = 3  # before a capture: what libraries allocate when first used must not become a part of the recording


class CudaGraphStep:
    """The loss of a batch and its gradients as one CUDA graph, for batches of one shape.

    It computes what `loss_of` and its backward pass compute kernel by kernel. As those, it gives the `learned`
    parameters fresh gradients; it counts on nothing but their values, so an optimizer may change these in place.
    """

    def __init__(
        self, loss_of: Callable[[Tensor, Tensor], Tensor], learned: Sequence[nn.Parameter], x: Tensor, y: Tensor
    ) -> None:
        """Record for batches like `x`, `y`. The gradients of `learned` are worth nothing afterwards.

        Raises:
            RuntimeError: something in it cannot be recorded, or the memory does not hold a second copy of its results.
        """
        self._learned, self._x, self._y = learned, x.clone(), y.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._compute(loss_of)
        torch.cuda.current_stream().wait_stream(side)
        _forget_gradients(learned)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._compute(loss_of)
        self._gradients = [parameter.grad for parameter in learned]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch; its gradients are those of the parameters until the next call."""
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        for parameter, gradient in zip(self._learned, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()

    def _compute(self, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        _forget_gradients(self._learned)
        loss = loss_of(self._x, self._y)
        loss.backward()
        return loss.detach()


def record_step(
    loss_of: Callable[[Tensor, Tensor], Tensor], learned: Sequence[nn.Parameter], x: Tensor, y: Tensor
) -> CudaGraphStep | None:
    """A recording; None, and a line that says why, where a GPU does not get one: then nothing is lost but time.

    Elsewhere None: a CPU waits for no launches.
    """
    if x.device.type != "cuda":
        return None
    reason = "its memory might not hold one"
    try:
        if 2 * _largest_step(x.device) <= _free(x.device):  # validation runs beside it
            return CudaGraphStep(loss_of, learned, x, y)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        _forget_gradients(learned)
    print(f"going on without a recording of the step on {x.device}: {reason}", flush=True)
    return None


def _largest_step(device: torch.device) -> int:
    """Bytes that computing took so far beyond what is kept."""
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)


def _free(device: torch.device) -> int:
    """Bytes that nobody uses; torch gives back what it only keeps."""
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
