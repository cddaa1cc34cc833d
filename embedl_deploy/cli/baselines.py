"""What users run today and ours is measured against: eager, and torch.compile."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Model = Callable[..., object]


def eager(model: nn.Module) -> Model:
    """Returns ``model`` called as it is, without gradients."""

    def call(*args: object, **kwargs: object) -> object:
        with torch.no_grad():
            return model(*args, **kwargs)

    return call


def compiled(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Model:
    """Returns ``torch.compile(model)`` in float32, compiled for these inputs."""
    call = eager(_compile(model))
    call(*args, **kwargs)
    return call


def compiled_bf16_freezing(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Model:
    """Returns ``torch.compile(model)`` under bfloat16 autocast with weights frozen.

    The strongest float baseline that torch has on a processor: weights become constants that
    are converted and packed once.
    """
    from torch._inductor import config

    function = _compile(model)

    def call(*args: object, **kwargs: object) -> object:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return function(*args, **kwargs)

    with config.patch(freezing=True):
        call(*args, **kwargs)
    return call


def on_inputs(
    call: Model, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Callable[[], object]:
    """Returns a callable without arguments, for a measurement."""
    if kwargs:
        keywords = dict(kwargs)
        return lambda: call(*args, **keywords)
    return lambda: call(*args)


def first_tensor(output: object) -> Tensor:
    """Returns the first tensor of an output, however it is nested."""
    from torch.utils import _pytree

    for leaf in _pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError(f"the model returned no tensor, got {type(output).__name__}")


def _compile(model: nn.Module) -> nn.Module:
    # A function of its own: torch.compile keeps its state on the module's code object, and two
    # compilations of one forward would share what the first one compiled.
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *args: object, **kwargs: object) -> object:
            return self.inner(*args, **kwargs)

    wrapped = Wrapped().eval()
    return torch.compile(wrapped)  # pyright: ignore[reportReturnType]  # torch says Callable
