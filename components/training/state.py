"""Everything that training changes, in one place: what a checkpoint holds, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from components.arrays import Arrays
from components.config import Finetune as Settings
from components.training.checkpoint import Checkpoint
from components.training.cuda_graph import CudaGraphStep


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch, counted from 1; NaN for those of a validation that was not due."""

    epoch: int
    train_loss: float
    val_loss: float = math.nan
    val_accuracy: float = math.nan

    @property
    def validated(self) -> bool:
        """Whether the epoch ended with a validation."""
        return not math.isnan(self.val_loss)


def validation_rank(epoch: Epoch) -> tuple[float, float]:
    """Return a sort key, smaller for better epochs: by accuracy, then by loss; epochs without a validation are last."""
    return (-epoch.val_accuracy, epoch.val_loss) if epoch.validated else (math.inf, math.inf)


@dataclass
class TrainingState:
    """The state of a training between two steps.

    Attributes:
        parameters: what the module learns.
        head: linear head on the pooled tail, 2 width -> C.
        optimizer: AdamW on the parameters and the head.
        generator: of the shuffles.
        order: this epoch's permutation of the n training images, (n,) int64.
        part: how many images of a batch are computed at once, as far as the device's memory was found to go.
        graph_step: computes a whole batch on a GPU, where it could be recorded.
        recorded: whether recording was tried.
        step: optimizer steps so far.
        position: images of `order` that were seen in this epoch.
        loss_sum: their losses' sum.
        history: the finished epochs.
        best: copies of all that was `learned` after the best epoch of the history.
    """

    parameters: Sequence[nn.Parameter]
    head: nn.Linear
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    order: Tensor
    part: int
    graph_step: CudaGraphStep | None = None
    recorded: bool = False
    step: int = 0
    position: int = 0
    loss_sum: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)

    @classmethod
    def begin(
        cls, parameters: Sequence[nn.Parameter], width: int, classes: int, images: int, settings: Settings, seed: int
    ) -> TrainingState:
        """Start a training: a head of zeros, a new optimizer, and the first shuffle.

        Args:
            parameters: what the module learns.
            width: inputs of the head.
            classes: outputs of the head.
            images: number of training images n.
            settings: of the optimizer.
            seed: of the shuffles.
        """
        head = nn.Linear(width, classes).to(parameters[0].device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        groups = [
            {"params": list(parameters), "lr": settings.learning_rate},
            {"params": list(head.parameters()), "lr": settings.head_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(images, generator=generator)
        return cls(parameters, head, optimizer, generator, order, settings.batch_size)

    @property
    def learned(self) -> list[nn.Parameter]:
        """Everything the optimizer changes: the module's parameters, then the head's."""
        return [*self.parameters, *self.head.parameters()]

    def end_epoch(self, epoch: Epoch) -> None:
        """Record an epoch, copy what was learned if it is the best so far, and shuffle for the next one."""
        if not self.history or validation_rank(epoch) < min(map(validation_rank, self.history)):
            self.best = [parameter.detach().clone() for parameter in self.learned]
        self.history.append(epoch)
        self.position, self.loss_sum = 0, 0.0
        self.order = torch.randperm(len(self.order), generator=self.generator)

    @torch.no_grad()
    def take_best(self) -> None:
        """Give the module and the head the values they had after the best epoch."""
        for parameter, value in zip(self.learned, self.best, strict=True):
            parameter.copy_(value)

    def checkpoint(self) -> Checkpoint:
        """Return the state as arrays and plain facts, every bit of it."""
        tensors: dict[str, Tensor] = {f"learned.{number}": parameter for number, parameter in enumerate(self.learned)}
        tensors |= {f"best.{number}": value for number, value in enumerate(self.best)}
        tensors |= {"order": self.order, "generator": self.generator.get_state()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        arrays: Arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        # JSON has no NaN: figures that an epoch lacks are left out.
        history = [{key: value for key, value in asdict(epoch).items() if value == value} for epoch in self.history]
        return Checkpoint(self.step, arrays, {"position": self.position, "loss_sum": self.loss_sum, "history": history})

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint that a state with the same shapes made."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.arrays.items()}
        device = self.head.weight.device
        for number, parameter in enumerate(self.learned):
            parameter.copy_(tensors[f"learned.{number}"])
        self.order = tensors["order"]
        self.generator.set_state(tensors["generator"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number_of, moment = name.split(".")
                moments.setdefault(int(number_of), {})[moment] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        count = len(self.learned) if checkpoint.facts["history"] else 0
        self.best = [tensors[f"best.{number}"].to(device) for number in range(count)]
        self.history = [Epoch(**row) for row in checkpoint.facts["history"]]
        self.step, self.position = checkpoint.step, checkpoint.facts["position"]
        self.loss_sum = checkpoint.facts["loss_sum"]
