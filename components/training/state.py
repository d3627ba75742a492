"""All that training changes, in one place: what a checkpoint has to hold, and nothing else."""

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
    """What one epoch reached; NaN for what nobody looked at."""

    epoch: int
    train_loss: float
    val_loss: float = math.nan
    val_accuracy: float = math.nan

    @property
    def validated(self) -> bool:
        """Whether the validation split was asked."""
        return not math.isnan(self.val_loss)


def validation_rank(epoch: Epoch) -> tuple[float, float]:
    """Smaller is better: accuracy first, loss between equals; an epoch that was not validated comes last."""
    return (-epoch.val_accuracy, epoch.val_loss) if epoch.validated else (math.inf, math.inf)


@dataclass
class TrainingState:
    """Where training stands.

    `order` (n,) is this epoch's shuffle of the n images, `position` how many of them were seen, `loss_sum` the loss
    summed over those. `part` is how many images of a batch are computed at once: what the device's memory was found to
    hold. `graph_step` computes a whole batch, where it was recorded (on a GPU); `recorded` says whether that was tried.
    `best` is all that was `learned` after the best epoch of `history`.
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
        """Before the first step: a linear head (width -> classes) that answers nothing yet, and a fresh optimizer."""
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
        """Write the epoch down, keep what it learned if it is the best so far, and shuffle for the next one."""
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
        """The state as arrays and plain facts, every bit of it."""
        tensors: dict[str, Tensor] = {f"learned.{number}": parameter for number, parameter in enumerate(self.learned)}
        tensors |= {f"best.{number}": value for number, value in enumerate(self.best)}
        tensors |= {"order": self.order, "generator": self.generator.get_state()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        arrays: Arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        # JSON has no NaN: what was not validated is left out.
        history = [{key: value for key, value in asdict(epoch).items() if value == value} for epoch in self.history]
        return Checkpoint(self.step, arrays, {"position": self.position, "loss_sum": self.loss_sum, "history": history})

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that a state with the same shapes wrote."""
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
