"""Traces a model with torch.fx, for what torch.export refuses."""

import inspect
from collections.abc import Mapping

from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils._pytree import tree_leaves

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing.light_copy import light_copy


def symbolic_model(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> GraphModule:
    """Returns ``model`` as torch.fx sees it; inputs without tensors are fixed to their values.

    Raises:
        TracingError: The model is beyond symbolic tracing too.
    """
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    fixed = {
        name: value
        for name, value in bound.arguments.items()
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
        and value not in ((), {})
    }
    try:
        return symbolic_trace(light_copy(model), concrete_args=fixed)
    except Exception as error:
        raise TracingError(
            f"torch.fx cannot trace {type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
