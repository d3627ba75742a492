"""Several processes that train one module together, each on its share of every batch (docs/training.md).

torchrun's engine starts them and ends them all when one fails; torch.distributed adds up their gradients. All of them
hold the same parameters and optimizer, take the same steps and come to the same decisions, so the first one's
checkpoints and module are everybody's.
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

_PATIENCE = timedelta(minutes=30)  # for the slowest of the processes, which may still be decoding images
_LAST_WORDS_SECONDS = (
    2  # from SIGTERM to SIGKILL: less than a stage's owner waits for the stage (flows/pipeline/supervisor.py)
)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among the `count` that train the same module; by default the only one."""

    rank: int = 0
    count: int = 1

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows (n,): parts differ by one row at most, and are empty where n < count."""
        return rows.tensor_split(self.count)[self.rank]

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The sums of the processes' values, through memory of their `device`.

        Raises:
            PeersLostError: another process ended, or does not answer.
        """
        if self.count == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64, device=device)
        with _meeting():
            distributed.all_reduce(message)
        return [float(value) for value in message]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Add the gradients that the processes have of their shares of a batch, and their losses (); returns that sum.

        One message for all of them. A process without a share has no gradient: it adds zero.

        Raises:
            PeersLostError: another process ended, or does not answer.
        """
        if self.count == 1:
            return loss
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        message = torch.cat([*map(torch.flatten, gradients), loss.to(gradients[0]).reshape(1)])
        with _meeting():
            distributed.all_reduce(message)
        vector_to_parameters(message[:-1], gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return message[-1]

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            PeersLostError: another process ended, or does not come.
        """
        if self.count > 1:
            with _meeting():
                distributed.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does what is in the context, then the others do it."""
        if self.rank > 0:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()


ALONE = ProcessGroup()


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL: "connection closed by peer", or a time-out
        raise PeersLostError(" ".join(str(error).split())) from error


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """This process's place among those that `launch`, or a user's own torchrun, started; alone where nobody did.

    On CUDA each takes the GPU of its number. Only the first one prints.

    Raises:
        IntaglioError: the device is none that processes can share their work on, or there are too few GPUs.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    here, number = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise IntaglioError(f"{here} processes need a GPU each, but there are {torch.cuda.device_count()} here")
        torch.cuda.set_device(number)
        own = torch.device("cuda", number)
        distributed.init_process_group("nccl", timeout=_PATIENCE, device_id=own)
    elif device.type == "cpu":
        distributed.init_process_group("gloo", timeout=_PATIENCE)
    else:
        raise IntaglioError(f"device {device.type} has no way for several processes; set finetune.processes: 1")
    processes = ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if processes.rank else sys.stdout):
        yield processes
        processes.wait()  # who leaves first would look lost to the others
    distributed.destroy_process_group()


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run this interpreter with `arguments` in so many processes, here and now; they end with this one.

    Each has its share of the cores, unless OMP_NUM_THREADS says otherwise.

    Raises:
        IntaglioError: one of them failed. The others were ended.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says, we say in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # the pipeline starts a stage again, and training goes on from its checkpoint
        shutdown_timeout=_LAST_WORDS_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise IntaglioError(_reason(error.failures, processes)) from None


def record(error: IntaglioError) -> None:
    """Tell the process that launched us why we end, instead of saying it once in every process."""
    get_error_handler().record_exception(error)


def _reason(failures: dict[int, ProcessFailure], processes: int) -> str:
    """Of the failures by rank, the one that the others followed from."""
    first = {rank: failure for rank, failure in failures.items() if failure.exitcode != ABANDONED} or failures
    rank = min(first, key=lambda number: first[number].timestamp)
    failure = first[rank]
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
