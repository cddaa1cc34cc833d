"""Samples of other sizes, and sizes as ``torch.export`` takes them."""

import inspect
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

from embedl_deploy.tracing.structures import pack
from embedl_deploy.tuning.graph_spec import GraphSpec, SizeRange
from embedl_deploy.tuning.sample import Sample


def resized(sample: Sample, spec: GraphSpec, sizes: Mapping[str, int]) -> Sample:
    """Returns ``sample`` with its varying dimensions repeated or cut to ``sizes``.

    Values are those of the sample, over and over: indices and masks stay valid.
    """
    ranges = iter(spec.sizes)

    def change(tensor: Tensor) -> Tensor:
        for dimension, size in enumerate(next(ranges)):
            wanted = None if size.symbol is None else sizes.get(size.symbol)
            if wanted is not None and tensor.shape[dimension]:
                places = torch.arange(wanted, device=tensor.device)
                tensor = tensor.index_select(dimension, places % tensor.shape[dimension])
        return tensor

    return sample.mapped(change)


def tracing_sizes(sample: Sample, spec: GraphSpec) -> dict[str, int]:
    """Returns sizes to trace with: the sample's own, but none that torch.export takes as fixed."""
    found: dict[str, int] = {}
    tensors = [leaf for leaf in sample.leaves() if isinstance(leaf, Tensor)]
    for tensor, ranges in zip(tensors, spec.sizes, strict=True):
        for actual, size in zip(tensor.shape, ranges, strict=True):
            if size.symbol is not None:
                found.setdefault(size.symbol, max(int(actual), min(2, size.upper)))
    return found


def export_shapes(
    forward: Callable[..., object], sample: Sample, spec: GraphSpec
) -> dict[str, object] | None:
    """Returns the ``dynamic_shapes`` of torch.export for a sample; None if nothing varies."""
    symbols = spec.symbols
    if not symbols:
        return None
    dims = {name: Dim(name, min=size.lower, max=size.upper) for name, size in symbols.items()}
    ranges = iter(spec.sizes)

    def declared(leaf: object) -> object:
        return _of_tensor(next(ranges), dims) if isinstance(leaf, Tensor) else None

    bound = inspect.signature(forward).bind(*sample.args, **sample.kwargs)
    arguments = cast("dict[str, object]", bound.arguments)
    return {
        name: cast("object", pytree.tree_map(declared, pack(value)[0]))
        for name, value in arguments.items()
    }


def _of_tensor(sizes: tuple[SizeRange, ...], dims: Mapping[str, Dim]) -> dict[int, Dim] | None:
    found = {
        dimension: dims[size.symbol]
        for dimension, size in enumerate(sizes)
        if size.symbol is not None
    }
    return found or None
