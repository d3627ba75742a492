"""Data-parallel training of one module by several processes (docs/how-to/train-with-several-processes.md).

    batch (n,) --share--> n/P images for each of P processes --> gradients --sum_gradients--> the same step in all

torch.distributed.elastic starts the processes and ends all of them when one fails. All of them hold the same
parameters and optimizer, take the same steps and come to the same decisions. So the checkpoints and the module that
the first one writes are those of all.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.utils import vector_to_parameters

from components.errors import ABANDONED, IntaglioError, PeersLostError

_TIMEOUT = timedelta(minutes=30)  # of a collective operation: the slowest process may still be decoding images
_SHUTDOWN_SECONDS = 2  # from SIGTERM to SIGKILL; flows/pipeline/supervisor.py waits longer for the whole stage


@dataclass(frozen=True)
class ProcessGroup:
    """This process, by its rank, among the `count` that train the same module; by default the only one."""

    rank: int = 0
    count: int = 1

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows (n, ...).

        Parts differ by one row at most; some are empty where n < count.
        """
        return rows.tensor_split(self.count)[self.rank]

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sum of each value over the processes; `device` is where they communicate.

        Raises:
            PeersLostError: another process ended, or does not answer.
        """
        if self.count == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64, device=device)
        with _lost_peers_named():
            distributed.all_reduce(message)
        return [float(value) for value in message]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients and the losses () of the processes' shares of a batch, in place, and return the loss.

        One message carries all of them. A process without a share has no gradient and adds zero.

        Raises:
            PeersLostError: another process ended, or does not answer.
        """
        if self.count == 1:
            return loss
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        message = torch.cat([*map(torch.flatten, gradients), loss.to(gradients[0]).reshape(1)])
        with _lost_peers_named():
            distributed.all_reduce(message)
        vector_to_parameters(message[:-1], gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return message[-1]

    def wait(self) -> None:
        """Wait until all processes have called this.

        Raises:
            PeersLostError: another process ended, or does not answer.
        """
        if self.count > 1:
            with _lost_peers_named():
                distributed.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the body of the context in the first process, then in the others."""
        if self.rank > 0:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()


ALONE = ProcessGroup()


@contextmanager
def _lost_peers_named() -> Iterator[None]:
    """Turn the errors of gloo and NCCL, a closed connection or a time-out, into PeersLostError."""
    try:
        yield
    except RuntimeError as error:
        raise PeersLostError(" ".join(str(error).split())) from error


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the processes that `launch`, or a user's own torchrun, started; without one, this process is ALONE.

    On CUDA each process takes the GPU of its local rank. Only the first one prints.

    Raises:
        IntaglioError: the device has no collective operations, or there are too few GPUs.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    local_count, local_rank = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local_count > (gpus := torch.cuda.device_count()):
            raise IntaglioError(f"{local_count} processes need a GPU each, but there are {gpus} here")
        torch.cuda.set_device(local_rank)
        distributed.init_process_group("nccl", timeout=_TIMEOUT, device_id=torch.device("cuda", local_rank))
    elif device.type == "cpu":
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
    else:
        raise IntaglioError(f"device {device.type} has no way for several processes; set finetune.processes: 1")
    processes = ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if processes.rank else sys.stdout):
        yield processes
        processes.wait()  # to the others, a process that ends before them is a lost one
    distributed.destroy_process_group()


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run this interpreter with `arguments` in so many processes on this machine, and wait for all of them.

    Each gets its share of the cores, unless OMP_NUM_THREADS is set. They end when this process ends.

    Raises:
        IntaglioError: one of them failed. The others were ended.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its message is the error below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # the pipeline starts a stage again, and training goes on from its checkpoint
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise IntaglioError(_reason(error.failures, processes)) from None


def report_to_launcher(error: IntaglioError) -> None:
    """Record the error that ends this process for the launcher, which prints it once for all processes."""
    get_error_handler().record_exception(error)


def _reason(failures: dict[int, ProcessFailure], processes: int) -> str:
    """Describe the first failure that is not a consequence of another one.

    Args:
        failures: of the processes that failed, by rank.
        processes: how many were started.
    """
    causes = {rank: failure for rank, failure in failures.items() if failure.exitcode != ABANDONED} or failures
    rank = min(causes, key=lambda number: causes[number].timestamp)
    failure = causes[rank]
    if isinstance(recorded := failure.error_file_data["message"], dict):
        return str(recorded["message"]).partition(": ")[2]  # after the name of the error's class
    if failure.exitcode >= 0:
        return f"training process {rank} of {processes} ended with status {failure.exitcode}; see what it printed above"
    name = signal.Signals(-failure.exitcode).name
    return (
        f"training process {rank} of {processes} (pid {failure.pid}) was ended by {name}, so the others were stopped; "
        "if the machine ran out of memory, lower finetune.processes; started again, training goes on from its last "
        "checkpoint"
    )
