"""How well training uses a GPU: model FLOP utilisation, time without a kernel, and the kernels that take longest."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from components.bench.machine import cpu_name

EPOCHS = 5  # of every way: the first two warm up, three are timed; one more is profiled
_SIDE, _PRODUCTS = 8192, 10  # of the product that stands for what the GPU can do
_SHOWN = 8  # kernels


@dataclass(frozen=True)
class Work:
    """An epoch without validation: what prepares it, the number of its images, and the FLOP of its model.

    There are two FLOP for each multiplication and addition in the frozen blocks' products, forward, and as many again
    for each block that a gradient passes through. Thin products and elementwise operations are not counted, as usual.
    """

    begin: Callable[[], Callable[[], object]]
    images: int
    flop: float


def gpu_rows(works: Mapping[str, Work], device: torch.device) -> dict[str, Any]:
    """Measure each way alone, one after the other.

    Returns:
        peak_tflops: of a large product in bfloat16, measured here; and `gpu`, a row for each way: images_per_second,
        tflops and mfu (their share of the peak), idle_share (of the time, no kernel at work), kernels and milliseconds
        of the GPU for each image, memory_mb, and its longest kernels, each with its share of the kernels' time.
    """
    peak = _peak(device)
    rows = []
    for way, work in works.items():
        row = {"method": way, **_measure(work, peak, device)}
        print("{method:<19}{images_per_second:9.1f} images/s, mfu {mfu}, idle {idle_share}".format(**row), flush=True)
        rows.append(row)
    return {"peak_tflops": round(peak / 1e12, 1), "gpu": rows}


def forward_flop(blocks: Sequence[nn.Module], tokens: int, width: int, device: torch.device) -> int:
    """Count the FLOP of one image's forward pass, with torch's own counter.

    Args:
        blocks: through which the image passes.
        tokens: of the image.
        width: of a token.
        device: on which to run.
    """
    x = torch.zeros(1, tokens, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for block in blocks:
            x = block(x)
    return int(counter.get_total_flops())


def _measure(work: Work, peak: float, device: torch.device) -> dict[str, Any]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    epoch = work.begin()
    seconds = statistics.median([_seconds(epoch, device) for _ in range(EPOCHS)][2:])
    memory = torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        _seconds(epoch, device)
    events = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    spans = [(event.time_range.start, event.time_range.end) for event in kernels]
    spent: Counter[str] = Counter()
    for event, (start, end) in zip(kernels, spans, strict=True):
        spent[event.name] += end - start
    busy = covered(spans) / 1e6
    return {
        "images_per_second": round(work.images / seconds, 1),
        "tflops": round(work.flop / seconds / 1e12, 2),
        "mfu": round(work.flop / seconds / peak, 5),
        "idle_share": round(max(0.0, 1 - busy / seconds), 4),
        "kernels_per_image": round(len(kernels) / work.images, 2),
        "kernel_ms_per_image": round(1e3 * busy / work.images, 4),
        "memory_mb": round(memory / 2**20),
        "longest_kernels": [
            {"kernel": name[:120], "share": round(time / max(spent.total(), 1e-9), 4)}
            for name, time in spent.most_common(_SHOWN)
        ],
    }


def device_name(device: torch.device) -> str:
    """Name what computes: a GPU, or so many threads of a processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {cpu_name()}" if device.type == "cpu" else device.type


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished: a call returns before its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Measure the union of some intervals: kernels of two streams may run at the same time."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _seconds(epoch: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    epoch()
    wait_for(device)
    return time.perf_counter() - start


def _peak(device: torch.device) -> float:
    """Measure the FLOP a second of a large product in bfloat16: the median of some, after as many to warm up."""
    a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))

    def product() -> Tensor:
        return a @ b

    seconds = [_seconds(product, device) for _ in range(2 * _PRODUCTS)][_PRODUCTS:]
    return 2 * _SIDE**3 / statistics.median(seconds)
