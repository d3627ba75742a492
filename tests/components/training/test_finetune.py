"""Learning a task: the same bytes every time, nothing of other tasks read or changed, and clear failures."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.config import Config
from components.data.manifest import read_manifest
from components.errors import IntaglioError
from components.io import read_json, sha256_file
from components.modules.low_rank import read_component
from components.training.finetune import finetune
from components.training.schedule import kept_tokens, lr_factor
from components.vision.backbone import Vit


def digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_a_module_is_reproducible_and_leaves_earlier_ones_alone(learned: Path, config: Config) -> None:
    before = digests(learned / "models/modules")
    shutil.rmtree(learned / "models/modules/high")
    finetune(learned, config, "high")
    assert digests(learned / "models/modules") == before


def test_nothing_of_another_task_is_read(learned: Path, config: Config) -> None:
    for folder in ("images/low", "images/middle", "models/signatures"):
        shutil.rmtree(learned / folder)
    (learned / "data/manifests/low.parquet").unlink()
    (learned / "data/manifests/middle.parquet").unlink()
    before = sha256_file(learned / "models/modules/high/module.json")
    finetune(learned, config, "high")
    assert sha256_file(learned / "models/modules/high/module.json") == before


def test_learning_reports_what_it_did(learned: Path) -> None:
    figures = read_json(learned / "reports/finetune/high.json")
    history = pd.read_csv(learned / "reports/finetune/high.csv")
    assert list(history.columns) == ["epoch", "train_loss", "val_loss", "val_accuracy"]
    assert len(history) == figures["epochs"]
    assert history["val_loss"].notna().tolist() == [True, False, True]  # every second one, counted from the last
    assert history["val_accuracy"].isna().equals(history["val_loss"].isna())
    assert history.loc[figures["best_epoch"] - 1, "val_accuracy"] == pytest.approx(figures["val_accuracy"])
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert figures["adapter_rank"] == 9
    assert figures["reused_directions"] > 0
    assert read_json(learned / "reports/finetune/low.json")["reused_directions"] == 0


def test_a_small_rank_budget_is_kept_and_its_error_recorded(learned: Path, config: Config) -> None:
    small = config.model_copy(update={"finetune": config.finetune.model_copy(update={"max_rank": 4})})
    finetune(learned, small, "high")
    figures = read_json(learned / "reports/finetune/high.json")
    assert figures["adapter_rank"] == 4
    assert 0 < figures["truncation_error"] < 1


def test_a_margin_is_asked_of_the_right_class(learned: Path, config: Config) -> None:
    update = {"margin": 5.0, "learning_rate": 1e-9, "head_learning_rate": 1e-9, "label_smoothing": 0.2, "epochs": 1}
    finetune(learned, config.model_copy(update={"finetune": config.finetune.model_copy(update=update)}), "high")
    history = pd.read_csv(learned / "reports/finetune/high.csv")
    classes = read_manifest(learned, "high")["label"].nunique()
    logits = torch.zeros(classes)  # of a head that has learned nothing
    logits[0] -= 5.0
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(0), label_smoothing=0.2)
    assert history["train_loss"][0] == pytest.approx(float(wanted), rel=1e-3)
    assert history["val_loss"][0] == pytest.approx(np.log(classes), rel=1e-3)


def test_a_loss_that_explodes_is_reported_before_anything_is_written(learned: Path, config: Config) -> None:
    before = digests(learned / "models/modules")
    wild = config.finetune.model_copy(update={"learning_rate": 1e15})
    with pytest.raises(IntaglioError, match=r"'high': the loss is not finite in epoch .*lower finetune.learning_rate"):
        finetune(learned, config.model_copy(update={"finetune": wild}), "high")
    assert digests(learned / "models/modules") == before


def test_an_empty_split_is_named(learned: Path, config: Config) -> None:
    path = learned / "data/manifests/high.parquet"
    manifest = pd.read_parquet(path)
    manifest[manifest["split"] != "val"].to_parquet(path)
    with pytest.raises(IntaglioError, match="'high': its val split is empty"):
        finetune(learned, config, "high")


@given(
    images=st.integers(0, 5),
    patches=st.integers(1, 30),
    prefix=st.integers(0, 3),
    dropout=st.floats(0, 0.99),
    step=st.integers(0, 10**6),
)
def test_a_step_sees_the_prefix_and_its_share_of_the_patches(
    images: int, patches: int, prefix: int, dropout: float, step: int
) -> None:
    kept = kept_tokens(images, prefix + patches, prefix, dropout, (0, step)).numpy()
    assert kept.shape == (images, prefix + max(1, round(patches * (1 - dropout))))
    assert (kept[:, :prefix] == np.arange(prefix)).all()
    assert (np.diff(kept, axis=1) > 0).all()  # so none twice
    assert ((kept >= 0) & (kept < prefix + patches)).all()
    np.testing.assert_array_equal(kept, kept_tokens(images, prefix + patches, prefix, dropout, (0, step)))


def test_every_patch_is_seen_as_often_and_another_step_sees_others() -> None:
    seen = np.stack([kept_tokens(50, 17, 1, 0.5, (3, step)).numpy() for step in range(100)])
    counts = np.bincount(seen.ravel(), minlength=17)
    assert counts[0] == 5000  # the class token, always
    assert np.abs(counts[1:] / 5000 - 0.5).max() < 5 * np.sqrt(0.25 / 5000)
    assert (seen[0] != seen[1]).any()
    assert (seen[0, 0] != seen[0, 1]).any()


def test_the_last_epoch_is_validated_and_no_training_ends_before_one_was(learned: Path, config: Config) -> None:
    # At these rates nothing is learned: the first of equals stays the best.
    still = {"learning_rate": 1e-30, "head_learning_rate": 1e-30, "weight_decay": 0.0, "patience": 1, "epochs": 8}
    for every, validated in ((3, [2, 5]), (1, [1, 2]), (10, [8])):
        finetune_config = config.finetune.model_copy(update=still | {"validate_every": every})
        finetune(learned, config.model_copy(update={"finetune": finetune_config}), "high")
        history = pd.read_csv(learned / "reports/finetune/high.csv")
        assert history["epoch"][history["val_loss"].notna()].tolist() == validated
        assert read_json(learned / "reports/finetune/high.json")["best_epoch"] == validated[0]


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [lr_factor(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert rates[100] == pytest.approx(0)
    assert all(late <= early for early, late in pairwise(rates[10:]))


def out_of_memory_above(images: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds the tail's activations of so many images at once; returns the parts that were tried."""
    tail, tried = Vit.tail, list[int]()

    def limited(vit: Vit, tokens: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            tried.append(len(tokens))
            if len(tokens) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return tail(vit, tokens)

    monkeypatch.setattr(Vit, "tail", limited)
    return tried


def test_a_batch_that_does_not_fit_is_halved_and_learns_the_same(
    learned: Path, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_json(learned / "reports/finetune/high.json")
    whole = read_component(learned / "models/modules/high")
    tried = out_of_memory_above(5, monkeypatch)
    finetune(learned, config, "high")
    assert tried[:3] == [16, 8, 4]
    assert max(tried[3:]) == 4
    assert "out of memory, going on with 4 images at once" in capsys.readouterr().out
    assert read_json(learned / "reports/finetune/high.json")["train_loss"] == pytest.approx(before["train_loss"], 1e-3)
    for layer, update in read_component(learned / "models/modules/high").items():
        np.testing.assert_allclose(update.b @ update.a, whole[layer].b @ whole[layer].a, atol=2e-3)


def test_a_device_that_holds_no_image_is_an_error(
    learned: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(IntaglioError, match="'high': cpu has too little memory to train on a single image"):
        finetune(learned, config, "high")
