"""The training loop of one module: the trunk's outputs of a task's images -> a trained module, a head, a history.

    tokens of the trunk (n, tokens, width) --drop patches--> tail with the new module --pool--> head --> loss
    loss = cross-entropy(logits - margin at the label) + l1 |s|_1 + l2 |s|_2^2

The trunk is frozen, so a step computes the tail alone. AdamW with warm-up and cosine; the epoch that is best on the
validation split is kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.config import Finetune as Settings
from components.errors import IntaglioError
from components.modules.adapted_linear import Trainable
from components.modules.low_rank import Head
from components.training.checkpoint import Checkpoints
from components.training.convergence import check_converged
from components.training.cuda_graph import record_step
from components.training.distributed import ALONE, ProcessGroup
from components.training.schedule import kept_tokens, lr_factor, validated_in
from components.training.state import Epoch, TrainingState, validation_rank
from components.vision.backbone import Vit, autocast, upload
from components.vision.pixel_batches import ProgressLine
from components.vision.trunk_cache import BATCH, Tokens

_STEPS_AHEAD = 32  # given to a GPU before their losses are read, which waits for it: it never runs out of work


@dataclass(frozen=True)
class Split:
    """The trunk's outputs of one split of a task, and its labels.

    Attributes:
        tokens: of all n images, then of another view of all, and so on: (views * n, tokens, width) float16, mapped
            from disk or on the device.
        labels: class indices, (n,) int64.
        views: how many views of each image there are.
    """

    tokens: Tokens | Tensor
    labels: Tensor
    views: int = 1

    def __len__(self) -> int:
        """Return the number of images n."""
        return len(self.labels)

    def read(self, rows: Tensor, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the tokens (m, tokens, width) float32 and the labels (m,) of some images, on the device.

        Args:
            rows: of the images, (m,) int64.
            epoch: counted from 0; epochs see the views of an image in turn.
            device: of the results.
        """
        view = (rows + epoch) % self.views
        places = view * (len(self.tokens) // self.views) + rows
        if isinstance(self.tokens, Tensor):
            tokens = self.tokens[upload(places, device)]
        else:
            tokens = upload(torch.from_numpy(self.tokens[places.numpy()]), device)
        return tokens.float(), upload(self.labels[rows], device)

    def moved_to_gpu_if_it_fits(self, device: torch.device) -> Split:
        """Return the split with its tokens on a GPU, where half of the free memory holds them; else as it is.

        A step reads the GPU's memory faster than files.
        """
        if device.type != "cuda" or isinstance(self.tokens, Tensor):
            return self
        one = self.tokens[:1]
        if len(self.tokens) * one.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        whole = torch.empty(len(self.tokens), *one.shape[1:], dtype=torch.float16, device=device)
        for start in range(0, len(whole), BATCH):
            part = slice(start, start + BATCH)
            whole[part] = upload(torch.from_numpy(self.tokens[part]), device)
        return replace(self, tokens=whole)


@dataclass(frozen=True)
class TrainingJob:
    """What stays the same during a training.

    Attributes:
        task: name of the task, for messages.
        vit: the backbone, whose tail carries the adapted layers.
        trained: the adapted layers.
        train: split to learn from.
        val: split that chooses the best epoch.
        classes: number of classes C.
        settings: of the training.
        seed: of the shuffles and the dropped patches.
        processes: this process among those that train the module together; all else is equal in all of them.
    """

    task: str
    vit: Vit
    trained: Trainable
    train: Split
    val: Split
    classes: int
    settings: Settings
    seed: int
    processes: ProcessGroup = ALONE

    @property
    def steps(self) -> int:
        """Number of optimizer steps in all epochs."""
        return math.ceil(len(self.train) / self.settings.batch_size) * self.settings.epochs


def train(job: TrainingJob, checkpoints: Checkpoints) -> tuple[list[Epoch], Head]:
    """Train until the validation split stops improving; `job.trained` ends with the values of the best epoch.

    Resumes from the newest checkpoint, if there is one. On a CPU, with the same numbers of threads and processes, the
    result is then the same to the last bit.

    Args:
        job: what to train, on what.
        checkpoints: of this job; the caller removes them when the result is stored.

    Returns:
        The history of all epochs, and the best epoch's head.

    Raises:
        IntaglioError: the loss is not finite, or training diverged.
        PeersLostError: another process of the training ended.
    """
    settings, vit = job.settings, job.vit
    job = replace(
        job, train=job.train.moved_to_gpu_if_it_fits(vit.device), val=job.val.moved_to_gpu_if_it_fits(vit.device)
    )
    parameters = job.trained.parameters()
    state = TrainingState.begin(parameters, 2 * vit.width, job.classes, len(job.train), settings, job.seed)
    with job.processes.first_before_others():  # the first one also removes damaged checkpoints
        found = checkpoints.newest()
    if found:
        state.restore(found)
        print(f"finetune {job.task}: goes on after step {state.step} of {job.steps}", flush=True)
    progress = ProgressLine(f"finetune {job.task}: epochs", settings.epochs, every=0)
    while not _finished(state, settings):
        epoch = train_epoch(job, state, checkpoints)
        accuracy = f", val accuracy {epoch.val_accuracy:.3f}" if epoch.validated else ""
        progress.at(epoch.epoch, f"loss {epoch.train_loss:.3f}{accuracy}")
    check_converged(job.task, job.classes, settings, state.history)
    state.take_best()
    weight, bias = (parameter.detach().float().cpu().numpy() for parameter in (state.head.weight, state.head.bias))
    return state.history, Head(weight, bias)


def deterministic(wanted: bool = True) -> None:
    """Have torch compute the same bits every time, or not, where the device can; for the whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    # It would fill every new tensor, a kernel each, to reveal reads of memory that nothing was written to.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _finished(state: TrainingState, settings: Settings) -> bool:
    """Return whether all epochs are done, or the last `patience` epochs brought no better one."""
    done = len(state.history)
    if done in (0, settings.epochs):
        return done > 0
    if not state.history[-1].validated:
        return False
    return done - min(state.history, key=validation_rank).epoch >= settings.patience


def train_epoch(job: TrainingJob, state: TrainingState, checkpoints: Checkpoints) -> Epoch:
    """Train the rest of the running epoch, and validate where that is due.

    Args:
        job: what to train, on what.
        state: of the training; it ends with a new epoch in its history.
        checkpoints: where the first process keeps the state as often as is due.

    Returns:
        The figures of the epoch.

    Raises:
        IntaglioError: the loss is not finite.
        PeersLostError: another process of the training ended.
    """
    number = len(state.history) + 1
    ahead = 1 if job.vit.device.type == "cpu" else _STEPS_AHEAD
    losses: list[tuple[Tensor, int]] = []
    for rows in _batches(state.order[state.position :], job.settings.batch_size):
        losses.append((_step(job, state, rows), len(rows)))
        state.position += len(rows)
        due = job.processes.rank == 0 and checkpoints.due()
        if due or len(losses) == ahead or state.position == len(job.train):
            _account(job, state, losses)
            losses = []
        if due:
            checkpoints.keep(state.checkpoint())
    train_loss, settings = state.loss_sum / len(job.train), job.settings
    epoch = Epoch(number, train_loss)
    if validated_in(number, settings):
        epoch = Epoch(number, train_loss, *_validate(job, state.head))
        if not math.isfinite(epoch.val_loss):
            raise _not_finite(job, number, state.step)
    state.end_epoch(epoch)
    return epoch


def _account(job: TrainingJob, state: TrainingState, losses: Sequence[tuple[Tensor, int]]) -> None:
    """Add the losses () of the last steps, each with its number of images, to the epoch's; waits for the device."""
    first = state.step - len(losses) + 1
    for step, (loss, images) in enumerate(losses, start=first):
        if not math.isfinite(value := float(loss)):
            raise _not_finite(job, len(state.history) + 1, step)
        state.loss_sum += value * images


def _step(job: TrainingJob, state: TrainingState, rows: Tensor) -> Tensor:
    """Take an optimizer step on the rows (n,) of the training split, and return the loss () before it."""
    settings = job.settings
    factor = lr_factor(state.step, job.steps, settings.warmup_fraction)
    peaks = settings.learning_rate, settings.head_learning_rate
    for group, peak in zip(state.optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor
    # Views and patches follow from the numbers of the epoch and the step, so that a resumed run and every process of
    # a shared one have the same.
    tokens, labels = job.train.read(job.processes.share(rows), len(state.history), job.vit.device)
    prefix, seed = job.vit.model.num_prefix_tokens, (job.seed, state.step)
    kept = kept_tokens(len(rows), tokens.shape[1], prefix, settings.patch_dropout, seed)
    tokens = tokens.take_along_dim(upload(job.processes.share(kept), tokens.device)[:, :, None], dim=1)
    whole = len(labels) == settings.batch_size
    if whole and state.graph_step:
        loss = state.graph_step(tokens, labels)
    else:
        loss = _gradients(job, state, tokens, labels, len(rows))
    loss = job.processes.sum_gradients(state.learned, loss)
    nn.utils.clip_grad_norm_(state.learned, settings.gradient_clip)
    state.optimizer.step()
    state.step += 1
    if whole and not state.recorded:  # the first whole batch has shown what memory holds
        state.recorded = True
        if state.part >= len(labels):
            state.graph_step = record_step(partial(_loss, job, state.head), state.learned, tokens, labels)
    return loss


def _gradients(job: TrainingJob, state: TrainingState, tokens: Tensor, labels: Tensor, images: int) -> Tensor:
    """Compute the loss () and the gradients that some images add to those of a batch of `images`.

    They are computed in parts where the device's memory does not hold all at once. The gradients of parts, like those
    of processes, add up to the batch's: memory and processes change only their last bits.

    Raises:
        IntaglioError: the memory does not hold a single image.
    """
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        try:
            total = tokens.new_zeros(())
            for part, own in zip(_batches(tokens, state.part), _batches(labels, state.part), strict=True):
                loss = _loss(job, state.head, part, own) * (len(own) / images)
                loss.backward()
                total += loss.detach()
            return total
        except torch.OutOfMemoryError:
            held = min(state.part, len(labels))
            if held == 1:
                raise _too_large(job) from None
        state.part = (held + 1) // 2  # after the handler, whose traceback keeps the failed part in memory
        print(f"finetune {job.task}: out of memory, going on with {state.part} images at once", flush=True)
        if job.vit.device.type == "cuda":
            torch.cuda.empty_cache()


def _batches(rows: Tensor, size: int) -> Sequence[Tensor]:
    """Return rows (n, ...) in order, `size` at a time; no batch where there are no rows, for which torch makes one."""
    return rows.split(size) if len(rows) else ()


def _loss(job: TrainingJob, head: nn.Linear, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the loss () of a batch, by the formula of this file; differentiable."""
    settings = job.settings
    with autocast(job.vit):
        logits = head(job.vit.tail(tokens))
        if settings.margin:  # the label has to lead by so many nats (CosFace, Wang et al., 2018, on plain logits)
            logits = logits - settings.margin * functional.one_hot(labels, job.classes)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
    for s in job.trained.scales():
        loss = loss + settings.l1 * s.abs().sum() + settings.l2 * s.square().sum()
    return loss


@torch.no_grad()
def _validate(job: TrainingJob, head: nn.Linear) -> tuple[float, float]:
    """Return the mean loss in nats, without margin and smoothing, and the accuracy on the validation split."""
    losses, hits, count = list[Tensor](), list[Tensor](), len(job.val)
    for rows in _batches(job.processes.share(torch.arange(count)), job.settings.batch_size):
        tokens, labels = job.val.read(rows, 0, job.vit.device)
        with autocast(job.vit):
            logits = head(job.vit.tail(tokens)).float()
        losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        hits.append((logits.argmax(dim=1) == labels).sum())
    loss, correct = job.processes.total((sum(map(float, losses)), sum(map(float, hits))), job.vit.device)
    return loss / count, correct / count


def _too_large(job: TrainingJob) -> IntaglioError:
    return IntaglioError(
        f"task {job.task!r}: {job.vit.device} has too little memory to train on a single image; "
        "lower backbone.adapted_blocks or backbone.image_size, or set device: cpu"
    )


def _not_finite(job: TrainingJob, epoch: int, step: int) -> IntaglioError:
    return IntaglioError(
        f"task {job.task!r}: the loss is not finite in epoch {epoch}, step {step} of {job.steps}; "
        f"lower finetune.learning_rate (now {job.settings.learning_rate:g})"
    )
