"""Whether a training converged, judged by its loss beside that of a guess."""

from __future__ import annotations

import math
from collections.abc import Sequence

from components.config import Finetune as Settings
from components.errors import IntaglioError
from components.training.state import Epoch

_DIVERGED = 2.0  # times the loss of a guess


def check_converged(task: str, classes: int, settings: Settings, history: Sequence[Epoch]) -> None:
    """Refuse a training that diverged: all its epochs are noise, the best one included.

    The head starts at zero, so the loss starts at that of a guess. A learning rate that is merely high brings it below
    that in the end, when the schedule has lowered the rate. Prints a warning where the loss never fell below a guess's.

    Args:
        task: name of the task.
        classes: number of its classes C.
        settings: of the training.
        history: its epochs.

    Raises:
        IntaglioError: the last epoch's loss is more than _DIVERGED times that of a guess.
    """
    guess, last = loss_of_a_guess(classes, settings), history[-1]
    if last.train_loss > _DIVERGED * guess:
        raise IntaglioError(
            f"task {task!r}: training diverged: after {last.epoch} epochs the loss is {last.train_loss:.3g}, "
            f"where a guess has {guess:.3g}; lower finetune.learning_rate (now {settings.learning_rate:g}) "
            f"or finetune.head_learning_rate (now {settings.head_learning_rate:g})"
        )
    if min(epoch.train_loss for epoch in history) > guess:
        print(f"warning: task {task!r}: the loss never fell below a guess's ({guess:.3g}); see its curve", flush=True)


def loss_of_a_guess(classes: int, settings: Settings) -> float:
    """Return the loss of equal logits over C classes, in nats, with margin m and label smoothing e.

    log(1 + (C - 1) exp(m)) - m e (C - 1) / C,  which is log C without a margin
    """
    others, margin = classes - 1, settings.margin
    excess = margin + math.log(math.exp(-margin) + others)  # the same logarithm; no margin is too large for it
    return excess - margin * settings.label_smoothing * others / classes
