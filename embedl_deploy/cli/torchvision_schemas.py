"""Lets torchvision, and what imports it, load beside a torch that it was not built for."""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def define_torchvision_schemas() -> torch.library.Library | None:
    """Declares the operators that ``import torchvision`` looks for and cannot find.

    torchvision's wheel is built for one build of torch, the one with CUDA. Beside another its
    library does not load, and importing it, timm, or most of transformers then fails with
    "operator torchvision::nms does not exist". Declaring the operators is enough for everything
    that never calls them. Call this before the first of those imports; later calls do nothing.

    Returns:
        The library that holds the declarations, None where torchvision is not installed or
        its own operators load.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _loads_own_operators(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _loads_own_operators(package: Path) -> bool:
    for binary in sorted(package.glob("_C*.so")) + sorted(package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(binary)
        except OSError:
            return False
        return True
    return False
