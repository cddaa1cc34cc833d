"""Whether a traced graph computes what the model does when nobody traces it."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only

from embedl_deploy.graph.distance import relative_error
from embedl_deploy.tracing.light_copy import light_copy

TOLERANCE = 1e-3
"""Largest relative error of a graph in float32; the traced ops are the model's own."""

_COARSER = {torch.float16: 10.0, torch.bfloat16: 80.0}


def unfaithful(
    model: nn.Module,
    traced: GraphModule,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
) -> str | None:
    """Returns how a traced graph differs from its model on the example inputs, None if it agrees.

    A model may ask whether it is traced (``torch.compiler.is_compiling()``) or whether gradients
    are on, and compute something else then; its graph holds only what it did while it was
    traced. The model is run with gradients on and off, on a copy that shares its parameters.
    """
    found = _run(traced, args, kwargs)
    errors: list[float] = []
    for with_gradients in (True, False):
        expected = _run(model, args, kwargs, with_gradients=with_gradients)
        if len(expected) != len(found):
            return None  # outputs that are no tensors to compare, such as caches
        errors.append(relative_error(found, expected))
        allowed = TOLERANCE * max((_COARSER.get(leaf.dtype, 1.0) for leaf in expected), default=1.0)
        if errors[-1] <= allowed:
            return None
    return (
        f"the traced graph differs from {type(model).__name__} on the example inputs: relative "
        f"error {min(errors):.1e}, more than rounding. The model computes something else while "
        "it is traced: look for torch.compiler.is_compiling(), torch.jit.is_tracing() or a fast "
        "path of its layers, and take it out"
    )


def _run(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    *,
    with_gradients: bool = False,
) -> list[Tensor]:
    given = copy.copy((args, dict(kwargs or {})))
    own_args, own_kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), given)
    runnable = model if isinstance(model, GraphModule) else light_copy(model)
    buffers = {name: buffer.clone() for name, buffer in runnable.named_buffers()}
    with torch.set_grad_enabled(with_gradients), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = functional_call(runnable, buffers, own_args, own_kwargs)
    return [leaf.detach() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
