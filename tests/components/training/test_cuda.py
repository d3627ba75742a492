"""Training on a real GPU: the recorded step, tokens in its memory, too little of it, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from components.bench.gpu import covered
from components.bench.training import bench_train
from components.bench.training_ways import WAYS
from components.config import Config
from components.errors import IntaglioError
from components.io import sha256_file
from components.modules.low_rank import read_component
from components.training import loop
from components.training.checkpoint import SECONDS_VARIABLE, Checkpoints
from components.training.cuda_graph import CudaGraphStep
from components.training.finetune import finetune
from components.vision.trunk_cache import Tokens

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")


def test_kernels_that_overlap_are_counted_once() -> None:
    assert covered([]) == 0
    assert covered([(4, 6), (0, 2), (1, 3), (1, 2), (6, 7)]) == 6


@pytest.fixture
def on_gpu(stream: Path, config: Config) -> Callable[..., pd.DataFrame]:
    """Train a task of the small stream on the GPU, with other settings of training; return its history."""

    def learn(task: str = "low", **settings: object) -> pd.DataFrame:
        update = {"finetune": config.finetune.model_copy(update=settings), "device": "cuda"}
        finetune(stream, config.model_copy(update=update), task)
        return pd.read_csv(stream / f"reports/finetune/{task}.csv")

    return learn


@needs_gpu
def test_a_recorded_step_learns_what_one_kernel_after_the_other_does(
    on_gpu: Callable[..., pd.DataFrame], stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CudaGraphStep | None] = []

    def spying(*arguments: object) -> CudaGraphStep | None:
        made.append(recorded(*arguments))  # type: ignore[arg-type]
        return made[-1]

    recorded = loop.record_step
    monkeypatch.setattr(loop, "record_step", spying)
    on_gpu()
    as_graph, component = on_gpu("middle"), read_component(stream / "models/modules/middle")  # with a past
    assert len(made) == 2
    assert all(made)
    monkeypatch.setattr(loop, "record_step", lambda *_: None)
    plain = on_gpu("middle")
    np.testing.assert_allclose(as_graph["train_loss"], plain["train_loss"], rtol=1e-4)
    for layer, update in read_component(stream / "models/modules/middle").items():
        np.testing.assert_allclose(update.b @ update.a, component[layer].b @ component[layer].a, atol=1e-3)


@needs_gpu
def test_tokens_in_its_memory_change_nothing(
    on_gpu: Callable[..., pd.DataFrame], stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_gpu_memory = on_gpu()
    module = sha256_file(stream / "models/modules/low/module.json")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))  # too full for them, and for a recording
    read: list[int] = []
    get = Tokens.__getitem__
    monkeypatch.setattr(Tokens, "__getitem__", lambda self, rows: read.append(1) or get(self, rows))
    from_files = on_gpu()
    assert len(read) > 10
    np.testing.assert_allclose(in_gpu_memory["train_loss"], from_files["train_loss"], rtol=1e-4)
    assert sha256_file(stream / "models/modules/low/module.json") == module


@needs_gpu
def test_too_little_memory_is_met_by_smaller_parts(
    on_gpu: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = on_gpu()
    loss_of, full = loop._loss, 16

    def crowded(
        job: loop.TrainingJob, head: torch.nn.Linear, tokens: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        if len(labels) > full // 4:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")  # a real refusal of the allocator
        return loss_of(job, head, tokens, labels)

    monkeypatch.setattr(loop, "_loss", crowded)
    parts = on_gpu()
    assert "out of memory, going on with 4 images at once" in capsys.readouterr().out
    np.testing.assert_allclose(whole["train_loss"], parts["train_loss"], rtol=1e-2)


@needs_gpu
def test_a_killed_training_goes_on_where_it_stood(
    on_gpu: Callable[..., pd.DataFrame], stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = on_gpu()
    digest = sha256_file(stream / "models/modules/low/module.json")
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    keep, kept = Checkpoints.keep, list[int]()

    def keep_and_die(self: Checkpoints, checkpoint: object) -> None:
        keep(self, checkpoint)  # type: ignore[arg-type]
        kept.append(1)
        if len(kept) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "keep", keep_and_die)
    with pytest.raises(KeyboardInterrupt):
        on_gpu()
    resumed = on_gpu()
    np.testing.assert_allclose(clean["train_loss"], resumed["train_loss"], rtol=1e-4)
    assert sha256_file(stream / "models/modules/low/module.json") == digest


@needs_gpu
def test_a_loss_that_explodes_names_its_step(on_gpu: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(IntaglioError, match=r"'low': the loss is not finite in epoch \d+, step \d+ of"):
        on_gpu(learning_rate=1e15)


@needs_gpu
def test_the_benchmark_reports_how_the_gpu_is_used(stream: Path) -> None:
    params = stream / "params.yaml"
    params.write_text(params.read_text().replace("device: cpu", "device: cuda"))
    found = bench_train(stream, blocks=2, images=64, epochs=2, tasks=0, memory=False)
    assert [row["method"] for row in found["gpu"]] == list(WAYS)
    for row in found["gpu"]:
        assert 0 <= row["mfu"] < 1  # of a tiny network next to nothing
        assert row["images_per_second"] > 0
        assert 0 <= row["idle_share"] < 1
        assert row["longest_kernels"]
