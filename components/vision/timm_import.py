"""The one import of timm. timm imports torchvision, which is made importable first."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

_DECLARED: list[torch.library.Library] = []  # schemas last as long as their library is referenced


def _declare_torchvision_operators() -> None:
    """Make a CUDA-built torchvision importable beside a CPU torch.

    Its extension declares two operators, and cannot load there.
    """
    spec = find_spec("torchvision")
    extension = next(Path(spec.origin).parent.glob("_C*.so"), None) if spec and spec.origin else None
    try:
        if extension is not None:
            torch.ops.load_library(str(extension))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)


_declare_torchvision_operators()

from timm import create_model  # noqa: E402
from timm.layers.patch_dropout import PatchDropout  # noqa: E402
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn  # noqa: E402

__all__ = ["PatchDropout", "VisionTransformer", "checkpoint_filter_fn", "create_model"]
