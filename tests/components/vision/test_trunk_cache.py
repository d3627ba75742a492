"""The trunk's outputs on disk: computed once, never wrong, and the same to the last bit however they came about."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import components.vision.trunk_cache
from components.arrays import Embeddings
from components.config import Config
from components.data.images import ImageError, Limits
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from components.evaluation.evaluate import evaluate
from components.inference.predictor import Predictor
from components.io import read_json, sha256_file
from components.signatures.fit import fit_signature
from components.training.finetune import finetune
from components.training.loop import Split
from components.vision.backbone import Vit, load_vit
from components.vision.pixel_batches import pixel_batches
from components.vision.trunk_cache import FOLDER, Tokens, TrunkCache, trunk_outputs

LARGE = 10**9


@pytest.fixture
def images(stream: Path, config: Config) -> tuple[list[Path], list[str]]:
    table = read_manifest(stream, "low")
    return [stream / "images/low" / path for path in table["path"]], table["sha256"].tolist()


Images = tuple[list[Path], list[str]]


def outputs(vit: Vit, images: Images, cache: TrunkCache, config: Config) -> tuple[NDArray[np.float16], Embeddings]:
    tokens, pooled = trunk_outputs(vit, *images, Limits.of(config.data), cache, "test")
    return tokens[:], pooled


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, nothing may be computed."""
    monkeypatch.setattr(Vit, "trunk", lambda *_: pytest.fail("the trunk ran"))


def segments(cache: TrunkCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*.safetensors"))


def test_what_is_kept_is_the_trunk(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    tokens, pooled = outputs(vit, images, TrunkCache(tmp_path / "cache", LARGE), config)
    pixels = np.concatenate(list(pixel_batches(images[0], vit.image_size, Limits.of(config.data))))
    with torch.inference_mode():
        exact, exact_pooled = vit.trunk(pixels)
    np.testing.assert_allclose(tokens, exact.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(pooled, exact_pooled.numpy(), rtol=1e-5, atol=1e-5)


def test_an_image_is_computed_once(
    vit: Vit, images: Images, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TrunkCache(tmp_path / "cache", LARGE)
    cold = outputs(vit, images, cache, config)
    forbid(monkeypatch)
    order = np.random.default_rng(0).permutation(len(images[0]))
    shuffled = [images[0][row] for row in order], [images[1][row] for row in order]
    warm = outputs(vit, shuffled, cache, config)
    np.testing.assert_array_equal(warm[0], cold[0][order])
    np.testing.assert_array_equal(warm[1], cold[1][order])


def test_an_image_gets_the_same_bits_in_any_company(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    """Computed alone, in another order or beside what was there before: the bits of the whole set's run."""
    whole = outputs(vit, images, TrunkCache(tmp_path / "whole", LARGE), config)
    cache, rng = TrunkCache(tmp_path / "parts", LARGE), np.random.default_rng(1)
    for rows in ([5], [7, 6, 5], rng.permutation(80), rng.permutation(len(images[0]))):
        part = outputs(vit, ([images[0][r] for r in rows], [images[1][r] for r in rows]), cache, config)
        np.testing.assert_array_equal(part[0], whole[0][rows])
        np.testing.assert_array_equal(part[1], whole[1][rows])
    assert len(segments(cache)) == 4


def test_equal_files_share_an_entry(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    twice = ([images[0][0], images[0][1], images[0][0]], [images[1][0], images[1][1], images[1][0]])
    tokens, _ = outputs(vit, twice, TrunkCache(tmp_path / "cache", LARGE), config)
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert not np.array_equal(tokens[0], tokens[1])


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"trunk_depth": 1}, {"depths": (4,)}, {"half": True}])
def test_another_backbone_has_other_entries(
    vit: Vit, images: Images, config: Config, tmp_path: Path, change: dict[str, object]
) -> None:
    cache = TrunkCache(tmp_path / "cache", LARGE)
    outputs(vit, images, cache, config)
    outputs(replace(vit, **change), images, cache, config)  # type: ignore[arg-type]
    assert len({path.parent for path in segments(cache)}) == 2


@pytest.mark.parametrize("where", [0.0, 0.01, 0.5, 0.999])
def test_a_damaged_entry_is_found_and_computed_again(
    vit: Vit, images: Images, config: Config, tmp_path: Path, where: float
) -> None:
    cache = TrunkCache(tmp_path / "cache", LARGE)
    before = outputs(vit, images, cache, config)
    path = segments(cache)[0]
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 0x11
    path.write_bytes(data)
    for expected, found in zip(before, outputs(vit, images, cache, config), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"[]", b"\2\0\0\0\0\0\0\0[]", b"rubbish" * 50])
def test_rubbish_in_the_folder_is_removed(
    vit: Vit, images: Images, config: Config, tmp_path: Path, content: bytes
) -> None:
    cache = TrunkCache(tmp_path / "cache", LARGE)
    before = outputs(vit, images, cache, config)
    rubbish = segments(cache)[0].with_name("rubbish.safetensors")
    rubbish.write_bytes(content)
    segments(cache)[0].write_bytes(segments(cache)[0].read_bytes()[:-1])  # and one that is cut short
    np.testing.assert_array_equal(outputs(vit, images, cache, config)[0], before[0])
    assert not rubbish.exists()


def test_the_least_recently_used_make_room(
    vit: Vit, images: Images, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components.vision.trunk_cache, "SEGMENT_BYTES", 1)  # a segment for each batch
    thirds = [(images[0][start::3], images[1][start::3]) for start in range(3)]
    cache = TrunkCache(tmp_path / "cache", LARGE)
    for age, third in zip((300, 200), thirds, strict=False):
        outputs(vit, third, cache, config)
        for path in segments(cache):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    first = {
        path for path in segments(cache) if path.stat().st_mtime == min(p.stat().st_mtime for p in segments(cache))
    }
    outputs(vit, thirds[0], cache, config)  # now the second is the oldest
    small = TrunkCache(cache.folder, sum(path.stat().st_size for path in segments(cache)))
    outputs(vit, thirds[2], small, config)
    assert first <= set(segments(cache))
    assert sum(path.stat().st_size for path in segments(cache)) <= small.max_bytes
    forbid(monkeypatch)
    outputs(vit, thirds[0], small, config)
    outputs(vit, thirds[2], small, config)
    with pytest.raises(pytest.fail.Exception, match="the trunk ran"):
        outputs(vit, thirds[1], small, config)


def test_without_room_nothing_stays_and_all_is_read(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    whole = outputs(vit, images, TrunkCache(tmp_path / "large", LARGE), config)
    cache = TrunkCache(tmp_path / "none", 0)
    tokens, _ = trunk_outputs(vit, *images, Limits.of(config.data), cache, "test")
    assert not segments(cache)
    np.testing.assert_array_equal(tokens[:], whole[0])


def test_an_image_that_changed_is_no_entry(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    shutil.copy(images[0][1], images[0][0])
    with pytest.raises(ImageError, match=r"changed since its task was ingested; run the stage 'ingest' again"):
        outputs(vit, images, TrunkCache(tmp_path / "cache", LARGE), config)


def test_outputs_beyond_float16_are_refused(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    with torch.no_grad():
        vit.model.pos_embed.fill_(1e6)
    with pytest.raises(IntaglioError, match="does not fit float16"):
        outputs(vit, images, TrunkCache(tmp_path / "cache", LARGE), config)


def _fill(root: Path, config: Config, cache: TrunkCache, start: Barrier, kill: bool) -> None:
    """Fill the cache in a process of its own, which may kill itself in the middle of its first segment."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, cpu)
    table = read_manifest(root, "low")
    paths = [root / "images/low" / path for path in table["path"]]
    components.vision.trunk_cache.SEGMENT_BYTES = 1
    original = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        original(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    if kill:
        Path.write_bytes = half  # type: ignore[method-assign, assignment]
    start.wait()
    trunk_outputs(vit, paths, table["sha256"].tolist(), Limits.of(config.data), cache, "test")


def test_writers_may_be_killed_and_may_be_two(
    vit: Vit, stream: Path, images: Images, config: Config, tmp_path: Path
) -> None:
    whole = outputs(vit, images, TrunkCache(tmp_path / "whole", LARGE), config)
    cache, spawn = TrunkCache(tmp_path / "cache", LARGE), multiprocessing.get_context("spawn")
    start = spawn.Barrier(3)
    writers = [spawn.Process(target=_fill, args=(stream, config, cache, start, kill)) for kill in (False, True)]
    for writer in writers:
        writer.start()
    start.wait()
    np.testing.assert_array_equal(outputs(vit, images, cache, config)[0], whole[0])
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, -signal.SIGKILL]
    np.testing.assert_array_equal(outputs(vit, images, cache, config)[0], whole[0])
    assert not list(cache.folder.glob("*/.*"))  # what the killed one left is swept


def digests(root: Path) -> dict[str, str]:
    folders = ("models/modules", "models/signatures", "reports")
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    seconds = ("finetune/low.json", "finetune/middle.json", "finetune/high.json")  # these name durations
    return {str(path): sha256_file(path) for path in paths if not str(path).endswith(seconds)}


def learn(root: Path, config: Config) -> None:
    finetune(root, config, "high")
    fit_signature(root, config, "high")
    evaluate(root, config)


def test_results_do_not_depend_on_the_cache(
    learned: Path, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Warm, deleted, elsewhere, and without room: the same bytes."""
    before = digests(learned)
    learn(learned, config)
    assert digests(learned) == before
    shutil.rmtree(learned / FOLDER)
    learn(learned, config)
    assert digests(learned) == before
    assert (learned / FOLDER).exists()
    shutil.rmtree(learned / FOLDER)
    monkeypatch.setenv("INTAGLIO_CACHE", str(tmp_path / "shared"))
    learn(learned, config.model_copy(update={"cache": config.cache.model_copy(update={"max_gb": 0.0})}))
    assert digests(learned) == before
    assert not (learned / FOLDER).exists()


def test_the_trunk_runs_once_for_all_stages(learned: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    learn(learned, config)


def test_rounded_tokens_give_the_answers_that_are_served(learned: Path, config: Config) -> None:
    """The stages read float16 tokens, prediction computes in float32: the same task and class for every test image."""
    table = pd.read_parquet(learned / "reports/predictions.parquet")
    paths = [learned / "images" / task / path for task, path in zip(table["task"], table["path"], strict=True)]
    predictor = Predictor.load(learned / "models/bundle", "cpu")
    served = [
        answer.top[0][:2]
        for pixels in pixel_batches(paths, config.backbone.image_size, Limits.of(config.data))
        for answer in predictor.predict_pixels(pixels)
    ]
    truth = list(zip(table["retrieved_task"], table["predicted_label"], strict=True))
    own = table["retrieved"]  # an image that went to another task is not classified in evaluation
    assert [task for task, _ in served] == [task for task, _ in truth]
    assert [pair for pair, right in zip(served, own, strict=True) if right] == [
        pair for pair, right in zip(truth, own, strict=True) if right
    ]
    assert read_json(learned / "reports/metrics.json")["test_images"] == len(served)


def test_each_view_of_an_image_is_kept_beside_the_others(
    vit: Vit, images: Images, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, limits = TrunkCache(tmp_path / "cache", LARGE), Limits.of(config.data)
    found = [trunk_outputs(vit, *images, limits, cache, "test", view)[0] for view in range(3)]
    assert (found[0][:] != found[1][:]).any()
    assert (found[1][:] != found[2][:]).any()
    forbid(monkeypatch)
    again = Tokens.joined([trunk_outputs(vit, *images, limits, cache, "test", view)[0] for view in range(3)])
    np.testing.assert_array_equal(again[:], np.concatenate([tokens[:] for tokens in found]))


def test_epochs_see_the_views_of_an_image_in_turn(vit: Vit, images: Images, config: Config, tmp_path: Path) -> None:
    cache, limits, count = TrunkCache(tmp_path / "cache", LARGE), Limits.of(config.data), len(images[0])
    found = [trunk_outputs(vit, *images, limits, cache, "test", view)[0] for view in range(3)]
    split = Split(Tokens.joined(found), torch.arange(count), views=3)
    rows = torch.tensor([4, 0, 5])
    for epoch in range(4):
        tokens, labels = split.read(rows, epoch, torch.device("cpu"))
        assert labels.tolist() == rows.tolist()
        for row, seen in zip(rows.tolist(), tokens, strict=True):
            np.testing.assert_array_equal(seen.numpy(), found[(row + epoch) % 3][row : row + 1][0].astype(np.float32))
