"""The shapes that an engine is built for, from the sizes that a graph declares."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_leaves

from embedl_deploy.engines.call_form import CallForm, TensorForm, has_upper_bound
from embedl_deploy.engines.engine import Sample
from embedl_deploy.engines.program import split_sample
from embedl_deploy.errors import BuildError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputProfile:
    """One input whose shape varies."""

    name: str
    smallest: Shape
    best: Shape
    """The shape of the sample: kernels are chosen for it."""

    largest: Shape


def profiles_of(
    form: CallForm, names: Sequence[str], sample: Sample
) -> tuple[InputProfile | None, ...]:
    """Returns a profile for each tensor input whose shape varies, None for the others.

    Args:
        form: The inputs.
        names: What they are called, for those that are tensors.
        sample: Example inputs.

    Raises:
        BuildError: A size has no upper bound, which TensorRT needs.
    """
    tensors = [leaf for leaf in tree_leaves(split_sample(sample)) if isinstance(leaf, Tensor)]
    forms = [leaf for leaf in form.leaves if isinstance(leaf, TensorForm)]
    rows = zip(names, forms, tensors, strict=True)
    return tuple(_profile(name, leaf, tensor) for name, leaf, tensor in rows)


def _profile(name: str, form: TensorForm, example: Tensor) -> InputProfile | None:
    if form.shape is not None:
        return None
    for dimension, bounds in enumerate(form.sizes):
        if not has_upper_bound(bounds):
            raise BuildError(
                f"TensorRT needs a largest size for dimension {dimension} of input {name!r}, "
                f"declared from {bounds[0]} up: declare Dim(..., max=...) in dynamic_shapes"
            )
    return InputProfile(
        name,
        tuple(low for low, _ in form.sizes),
        tuple(example.shape),
        tuple(high for _, high in form.sizes),
    )
