"""The engine computes what plain PEFT computes, for any tasks in a batch and however little memory it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from components.bench.peft_import import PeftModel
from components.config import BASE, Config
from components.errors import IntaglioError
from components.io import sha256_file
from components.modules.multi_module_vit import MERGE_FROM, MultiModuleViT, embed_pixels
from components.vision.backbone import Vit, autocast, in_bfloat16, load_vit
from components.vision.timm_import import create_model

TASKS = ("low", "middle", "high")
Loader = Callable[..., MultiModuleViT]


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def load(learned_template: Path, config: Config) -> Loader:
    """A fresh engine with a cache of so many bytes, in float32 or in bfloat16."""

    def fresh(cache_bytes: int = 2**30, half: bool = False, shared: str = BASE) -> MultiModuleViT:
        folder, cpu = learned_template / "models", torch.device("cpu")
        vit = load_vit(folder / "backbone", config.backbone, config.embedding.depths, cpu)
        return MultiModuleViT.load(in_bfloat16(vit) if half else vit, folder / "modules", TASKS, cache_bytes, shared)

    return fresh


@pytest.fixture(scope="module")
def engine(load: Loader) -> MultiModuleViT:
    return load()


@pytest.fixture(scope="module")
def plain(learned_template: Path) -> dict[str, torch.Tensor]:
    """The pooled last block under every task's adapter, loaded and run with timm and PEFT alone."""
    image = (torch.from_numpy(noise(40)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    found = {}
    for task in TASKS:
        model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32, depth=4)
        model.load_state_dict(load_file(learned_template / "models/backbone/backbone.safetensors"))
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            adapter = str(learned_template / "models/modules" / task / "adapter")
            whole = PeftModel.from_pretrained(model, adapter).eval().base_model.model.forward_features(image)
        found[task] = torch.cat([whole[:, 0], whole[:, 1:].mean(dim=1)], dim=1)
    return found


@settings(max_examples=25)
@given(tasks=st.lists(st.integers(0, 2), min_size=1, max_size=40), order=st.randoms(use_true_random=False))
def test_any_batch_equals_plain_peft(
    tasks: list[int], order: object, engine: MultiModuleViT, plain: dict[str, torch.Tensor]
) -> None:
    rows = np.random.default_rng(len(tasks)).permutation(40)[: len(tasks)]
    with torch.inference_mode():
        tokens, trunk = engine.vit.trunk(noise(40)[rows])
        h = engine.embed_each(np.array(tasks), tokens, trunk)
    assert torch.equal(h[:, : engine.vit.trunk_width], trunk)
    for position, (task, row) in enumerate(zip(tasks, rows, strict=True)):
        ours, expected = h[position, engine.vit.trunk_width :], plain[TASKS[task]][row]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, MERGE_FROM - 1, MERGE_FROM, 40])
def test_one_module_for_the_whole_batch_equals_plain_peft(
    count: int, engine: MultiModuleViT, plain: dict[str, torch.Tensor]
) -> None:
    with torch.inference_mode():
        tokens, trunk = engine.vit.trunk(noise(40)[:count])
        for task in TASKS:
            ours = engine.embed(task, tokens, trunk)[:, engine.vit.trunk_width :]
            torch.testing.assert_close(ours, plain[task][:count], atol=1e-4, rtol=0)
        frozen = engine.embed(None, tokens, trunk)[:, engine.vit.trunk_width :]
    assert (plain["high"][:count] - frozen).abs().max() > 1e-3


@pytest.mark.parametrize("half", [False, True])
def test_what_is_shared_lies_beside_the_frozen_and_changes_no_module(load: Loader, half: bool) -> None:
    alone, sharing = load(half=half), load(half=half, shared="low")
    found = [embed_pixels(engine, noise(12), (None, *TASKS)) for engine in (alone, sharing)]
    frozen, trunk = alone.width(None), alone.vit.trunk_width
    assert [h[None].shape[1] for h in found] == [frozen, sharing.width(None)]
    np.testing.assert_array_equal(found[1][None][:, :frozen], found[0][None])
    beside = found[1][None][:, frozen:]
    tolerance = {"atol": 3e-2 if half else 1e-5, "rtol": 0}
    np.testing.assert_allclose(beside, found[0]["low"][:, trunk:], **tolerance)
    assert np.abs(beside - found[0][None][:, trunk:]).max() > 10 * tolerance["atol"]
    for task in TASKS:
        np.testing.assert_array_equal(found[1][task], found[0][task])


def test_modules_come_and_go_where_the_cache_holds_one(load: Loader, engine: MultiModuleViT) -> None:
    small, rng = load(cache_bytes=1), np.random.default_rng(0)
    assert small.slots == 1
    assert engine.slots == 3
    for _ in range(5):
        tasks = rng.integers(0, 3, 12)
        with torch.inference_mode():
            tokens, trunk = engine.vit.trunk(noise(12))
            torch.testing.assert_close(
                small.embed_each(tasks, tokens, trunk), engine.embed_each(tasks, tokens, trunk), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("tasks", [[0, 1, 2] * 3, [1] * MERGE_FROM])
def test_in_bfloat16_embeddings_point_the_same_way(engine: MultiModuleViT, load: Loader, tasks: list[int]) -> None:
    pixels, asked = noise(len(tasks)), np.array(tasks)
    half = load(half=True)
    found = [embed_pixels(one, pixels, (None, "middle")) for one in (engine, half)]
    each = []
    for one in (engine, half):
        with torch.inference_mode(), autocast(one.vit):
            each.append(one.embed_each(asked, *one.vit.trunk(pixels)).numpy())
    for exact, rough in [*((found[0][task], found[1][task]) for task in (None, "middle")), each]:
        cosine = (exact * rough).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        assert rough.dtype == np.float32
        assert 0.999 < cosine.min() < 1


def test_after_an_error_the_backbone_is_frozen_again(load: Loader) -> None:
    engine = load()
    tokens, trunk = engine.vit.trunk(noise(2))
    before = engine.embed(None, tokens, trunk)
    with pytest.raises(RuntimeError):
        engine.embed_each(np.array([0, 1]), tokens[:, :, :-1], trunk)
    assert torch.equal(engine.embed(None, tokens, trunk), before)


def test_a_damaged_adapter_is_refused(learned: Path, vit: Vit) -> None:
    path = learned / "models/modules/low/adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntaglioError, match="damaged"):
        MultiModuleViT.load(vit, learned / "models/modules", ["low"])


def test_a_module_of_another_backbone_is_refused(learned: Path, vit: Vit) -> None:
    path = learned / "models/modules/low/module.json"
    path.write_text(path.read_text().replace(vit.sha256, sha256_file(path)))
    with pytest.raises(IntaglioError, match="another backbone"):
        MultiModuleViT.load(vit, learned / "models/modules", ["low"])


def test_without_modules_the_backbone_speaks(vit: Vit, learned: Path) -> None:
    tokens, trunk = vit.trunk(noise(1))
    expected = torch.cat([trunk, vit.tail(tokens)], dim=1)
    assert torch.equal(MultiModuleViT.load(vit, learned, []).embed(None, tokens, trunk), expected)
