"""The training loop: trunk outputs of one task in, a trained module and its history out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.config import Finetune as Settings
from components.errors import IntaglioError
from components.modules.adapted_linear import Trainable
from components.modules.low_rank import Head
from components.training.checkpoint import Checkpoints
from components.training.cuda_graph import record_step
from components.training.distributed import ALONE, ProcessGroup
from components.training.state import Epoch, TrainingState, validation_rank
from components.vision.backbone import Vit, autocast, upload
from components.vision.pixel_batches import ProgressLine
from components.vision.trunk_cache import BATCH, Tokens

_DIVERGED = 2.0  # times the loss of a guess
_STEPS_AHEAD = 32  # that a GPU may be given before their losses are looked at: it never waits for the next one


@dataclass(frozen=True)
class Split:
    """The trunk's outputs of one split and its labels (n,) int64.

    tokens (views * n, tokens, width): of all images, then of another view of all, and so on; mapped from disk, or a
    float16 tensor on the device.
    """

    tokens: Tokens | Tensor
    labels: Tensor
    views: int = 1

    def __len__(self) -> int:
        """Number of images n."""
        return len(self.labels)

    def read(self, rows: Tensor, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tokens and labels of some images, rows (m,). Epochs see the views of an image in turn."""
        turn = (rows + epoch) % self.views
        places = turn * (len(self.tokens) // self.views) + rows
        if isinstance(self.tokens, Tensor):
            tokens = self.tokens[upload(places, device)]
        else:
            tokens = upload(torch.from_numpy(self.tokens[places.numpy()]), device)
        return tokens.float(), upload(self.labels[rows], device)

    def moved_to_gpu_if_it_fits(self, device: torch.device) -> Split:
        """The same with its tokens on a GPU, where half of the free memory holds them: a step reads faster than files.

        On other devices, the same.
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
    """What stays the same during training: the module on its ViT, the task's images, the settings.

    `processes` is this process among those that train the module together; all have the same of everything else.
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
        """Optimizer steps of all epochs."""
        return math.ceil(len(self.train) / self.settings.batch_size) * self.settings.epochs


def train(job: TrainingJob, checkpoints: Checkpoints) -> tuple[list[Epoch], Head]:
    """Train until the validation split stops improving; `job.trained` ends with the best epoch's values.

    Cross-entropy with label smoothing on a linear head over the pooled tail, plus l1 |s|_1 + l2 |s|_2^2 on the reuse
    of the past. Continues from the newest checkpoint, if there is one: on a CPU, with the same numbers of threads and
    processes, the values in the end are the same to the last bit.

    Returns:
        Every epoch, and the best one's head.

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
    with job.processes.first_before_others():  # which also removes damaged ones
        found = checkpoints.newest()
    if found:
        state.restore(found)
        print(f"finetune {job.task}: goes on after step {state.step} of {job.steps}", flush=True)
    progress = ProgressLine(f"finetune {job.task}: epochs", settings.epochs, every=0)
    while not _finished(state, settings):
        epoch = train_epoch(job, state, checkpoints)
        accuracy = f", val accuracy {epoch.val_accuracy:.3f}" if epoch.validated else ""
        progress.at(epoch.epoch, f"loss {epoch.train_loss:.3f}{accuracy}")
    _check_learned(job, state.history)
    state.take_best()
    weight, bias = (parameter.detach().float().cpu().numpy() for parameter in (state.head.weight, state.head.bias))
    return state.history, Head(weight, bias)


def deterministic(wanted: bool = True) -> None:
    """Whether a computation gives the same bits every time, where the device knows how; for the whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS does not
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    # Filling every result beforehand costs a kernel each, and finds what reads before it writes: nothing here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _finished(state: TrainingState, settings: Settings) -> bool:
    done = len(state.history)
    if done in (0, settings.epochs):
        return done > 0
    if not state.history[-1].validated:
        return False
    return done - min(state.history, key=validation_rank).epoch >= settings.patience


def train_epoch(job: TrainingJob, state: TrainingState, checkpoints: Checkpoints) -> Epoch:
    """The rest of the epoch that `state` stands in, and its validation where one is due."""
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
    """Add the losses of the last steps, each with its number of images, to the epoch's; the device is waited for."""
    first = state.step - len(losses) + 1
    for step, (loss, images) in enumerate(losses, start=first):
        if not math.isfinite(value := float(loss)):
            raise _not_finite(job, len(state.history) + 1, step)
        state.loss_sum += value * images


def _step(job: TrainingJob, state: TrainingState, rows: Tensor) -> Tensor:
    """One step of the optimizer on a batch, the rows (n,) of the training split; returns the loss () before it."""
    settings = job.settings
    speed = lr_factor(state.step, job.steps, settings.warmup_fraction)
    for group, top in zip(
        state.optimizer.param_groups, (settings.learning_rate, settings.head_learning_rate), strict=True
    ):
        group["lr"] = top * speed
    # By the epoch's number, not drawn: who resumes knows it, and every process does. So with the patches.
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
    if whole and not state.recorded:  # the first such step has shown what memory holds
        state.recorded = True
        if state.part >= len(labels):
            state.graph_step = record_step(partial(_loss, job, state.head), state.learned, tokens, labels)
    return loss


def kept_tokens(images: int, tokens: int, prefix: int, dropout: float, seed: Sequence[int]) -> Tensor:
    """Which tokens a step sees of each image: the first `prefix`, and a random share 1 - `dropout` of the patches.

    PatchDropout (Liu et al., 2023): a step costs what its patches cost. At least one stays.

    Returns:
        (images, kept) int64, rising in each row.
    """
    patches = tokens - prefix
    kept = max(1, round(patches * (1 - dropout)))
    places = np.broadcast_to(np.arange(prefix, tokens), (images, patches))
    drawn = np.sort(np.random.default_rng(seed).permuted(places, axis=1)[:, :kept], axis=1)
    first = np.broadcast_to(np.arange(prefix), (images, prefix))
    return torch.from_numpy(np.concatenate([first, drawn], axis=1))


def _gradients(job: TrainingJob, state: TrainingState, tokens: Tensor, labels: Tensor, images: int) -> Tensor:
    """What some images add to the loss () of a batch of `images`, and to its gradients.

    They are computed in parts where the device has no memory for all at once. The gradients of the parts, as those of
    the processes, add up to the batch's, so that memory and processes change only their last bits.

    Raises:
        IntaglioError: the memory does not even hold one image.
    """
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        try:
            total = tokens.new_zeros(())
            for part, answers in zip(_batches(tokens, state.part), _batches(labels, state.part), strict=True):
                loss = _loss(job, state.head, part, answers) * (len(answers) / images)
                loss.backward()
                total += loss.detach()
            return total
        except torch.OutOfMemoryError:
            held = min(state.part, len(labels))
            if held == 1:
                raise _too_large(job) from None
        state.part = (held + 1) // 2  # outside the handler, whose traceback would keep the failed part in memory
        print(f"finetune {job.task}: out of memory, going on with {state.part} images at once", flush=True)
        if job.vit.device.type == "cuda":
            torch.cuda.empty_cache()


def _batches(rows: Tensor, size: int) -> Sequence[Tensor]:
    """Rows (n, ...) in order, `size` at a time. None of no rows: torch would make one empty batch of them."""
    return rows.split(size) if len(rows) else ()


def _loss(job: TrainingJob, head: nn.Linear, tokens: Tensor, labels: Tensor) -> Tensor:
    settings = job.settings
    with autocast(job.vit):
        logits = head(job.vit.tail(tokens))
        if settings.margin:  # a clear lead is asked for (as in CosFace, Wang et al., 2018, on plain logits)
            logits = logits - settings.margin * functional.one_hot(labels, job.classes)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
    for s in job.trained.scales():
        loss = loss + settings.l1 * s.abs().sum() + settings.l2 * s.square().sum()
    return loss


@torch.no_grad()
def _validate(job: TrainingJob, head: nn.Linear) -> tuple[float, float]:
    """Mean loss and accuracy on the validation split."""
    losses, rights, count = list[Tensor](), list[Tensor](), len(job.val)
    for rows in _batches(job.processes.share(torch.arange(count)), job.settings.batch_size):
        tokens, labels = job.val.read(rows, 0, job.vit.device)
        with autocast(job.vit):
            logits = head(job.vit.tail(tokens)).float()
        losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        rights.append((logits.argmax(dim=1) == labels).sum())
    loss, right = job.processes.total((sum(map(float, losses)), sum(map(float, rights))), job.vit.device)
    return loss / count, right / count


def lr_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, SGDR, 2017)."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def validated_in(epoch: int, settings: Settings) -> bool:
    """Whether the epoch, counted from 1, ends with a validation; the last one does."""
    return (settings.epochs - epoch) % settings.validate_every == 0


def _too_large(job: TrainingJob) -> IntaglioError:
    return IntaglioError(
        f"task {job.task!r}: {job.vit.device} has too little memory to train on a single image; "
        "lower backbone.adapted_blocks or backbone.image_size, or set device: cpu"
    )


def _check_learned(job: TrainingJob, history: list[Epoch]) -> None:
    """Refuse a module from a training that diverged: all its epochs are then noise, the best one included.

    The head starts at zero, so the loss starts at what a guess has, log(classes) where no margin is asked for. A rate
    that is merely high brings it below that in the end, when the schedule has lowered it.
    """
    guess, last = _loss_of_a_guess(job), history[-1]
    if last.train_loss > _DIVERGED * guess:
        settings = job.settings
        raise IntaglioError(
            f"task {job.task!r}: training diverged: after {last.epoch} epochs the loss is {last.train_loss:.3g}, "
            f"where a guess has {guess:.3g}; lower finetune.learning_rate (now {settings.learning_rate:g}) "
            f"or finetune.head_learning_rate (now {settings.head_learning_rate:g})"
        )
    if min(epoch.train_loss for epoch in history) > guess:
        print(
            f"warning: task {job.task!r}: the loss never fell below a guess's ({guess:.3g}); see its curve",
            flush=True,
        )


def _loss_of_a_guess(job: TrainingJob) -> float:
    """Of equal logits, label smoothing and margin m included: log(1 + (C - 1) e^m) - m * smoothing * (C - 1) / C."""
    others, margin = job.classes - 1, job.settings.margin
    excess = margin + math.log(math.exp(-margin) + others)  # no margin is too large for it
    return excess - margin * job.settings.label_smoothing * others / job.classes


def _not_finite(job: TrainingJob, epoch: int, step: int) -> IntaglioError:
    return IntaglioError(
        f"task {job.task!r}: the loss is not finite in epoch {epoch}, step {step} of {job.steps}; "
        f"lower finetune.learning_rate (now {job.settings.learning_rate:g})"
    )
