"""The inputs and outputs that a program was compiled for, and the check that a call fits them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import SymInt, Tensor
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

from embedl_deploy.errors import InputError

_NO_BOUND = 2**62


class _Bounds(Protocol):
    lower: object
    upper: object


@dataclass(frozen=True)
class TensorForm:
    """What one tensor input must be."""

    dtype: torch.dtype
    sizes: tuple[tuple[int, int], ...]
    """The smallest and largest admitted size of each dimension."""

    strides: tuple[int, ...]
    """How it must lie in memory, where all sizes are fixed; empty otherwise."""

    channels_last: bool
    shape: tuple[int, ...] | None
    """The one admitted shape, None if there are several."""

    device_type: str | None = None
    """Where it must lie, ``cpu`` or ``cuda``: compiled code reads its address unasked. None: not
    known, as older states do not tell."""

    @classmethod
    def of(cls, value: Tensor, sizes: tuple[tuple[int, int], ...]) -> "TensorForm":
        """Returns the form of an example, with the sizes that are admitted."""
        fixed = all(low == high for low, high in sizes)
        strides = tuple(value.stride()) if fixed else ()
        last = value.dim() == 4 and not value.is_contiguous() and _is_channels_last(value)
        shape = tuple(value.shape) if fixed else None
        return cls(value.dtype, sizes, strides, last, shape, value.device.type)

    def fitted(self, value: object, position: int) -> Tensor:
        """Returns ``value`` laid out as compiled for.

        Raises:
            InputError: It is no tensor of the type, shape and kind of device compiled for.
        """
        if not isinstance(value, Tensor) or value.dtype != self.dtype or not self._admits(value):
            raise InputError(
                f"input {position} must be {self._text()}, got {_describe(value)}: declare the "
                "sizes that change in dynamic_shapes and build again"
            )
        if self.device_type is not None and value.device.type != self.device_type:
            raise InputError(
                f"input {position} must lie on {self.device_type}, got a tensor on {value.device}: "
                "move it there, or build for its device"
            )
        if self.shape is not None:
            if value.stride() == self.strides:
                return value
            laid_out = torch.empty_strided(
                self.shape, self.strides, dtype=value.dtype, device=value.device
            )
            return laid_out.copy_(value)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return value.contiguous(memory_format=order)

    def blank(self, device: torch.device) -> Tensor:
        """Returns an admitted tensor of zeros, 2 long where sizes vary, if they may be.

        Args:
            device: Where it lies, unless only the other kind of device is admitted.
        """
        if self.device_type not in (None, device.type):
            device = torch.device(str(self.device_type))
        if self.shape is not None:
            made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device)
            return made.zero_()
        sizes = [min(max(low, 2), high) for low, high in self.sizes]
        return self.fitted(torch.zeros(sizes, dtype=self.dtype, device=device), 0)

    def _admits(self, value: Tensor) -> bool:
        if self.shape is not None:
            return value.shape == self.shape
        return value.dim() == len(self.sizes) and all(
            low <= size <= high for size, (low, high) in zip(value.shape, self.sizes, strict=True)
        )

    def _text(self) -> str:
        sizes = ", ".join(_bounds_text(low, high) for low, high in self.sizes)
        return f"{self.dtype}[{sizes}]"


@dataclass(frozen=True)
class CallForm:
    """The structure of a call: what is a tensor, what is a constant, how outputs come back."""

    inputs: TreeSpec
    outputs: TreeSpec
    leaves: tuple[object, ...]
    """For each input a ``TensorForm``, or the constant that was compiled in."""

    positional: int | None
    """The number of inputs, if all are tensors given by position; None otherwise."""

    def bind(self, args: Sequence[object], kwargs: dict[str, object]) -> list[Tensor]:
        """Returns the tensors of a call in the compiled order.

        Raises:
            InputError: The call is not the one that was compiled.
        """
        leaves: Sequence[object] = args
        if self.positional is None or kwargs or len(args) != self.positional:
            leaves = self._flattened(tuple(args), kwargs)
        tensors: list[Tensor] = []
        for position, (form, value) in enumerate(zip(self.leaves, leaves, strict=True)):
            if isinstance(form, TensorForm):
                tensors.append(form.fitted(value, position))
            elif type(value) is not type(form) or value != form:
                raise InputError(
                    f"input {position} was compiled as the constant {form!r}, got {value!r:.80}"
                )
        return tensors

    def result(self, outputs: Sequence[Tensor]) -> object:
        """Returns flat outputs in the structure that the module returns."""
        return tree_unflatten(outputs, self.outputs)

    def blank(self, device: torch.device) -> tuple[object, ...]:
        """Returns a sample that the form admits, its tensors zero."""
        leaves = [f.blank(device) if isinstance(f, TensorForm) else f for f in self.leaves]
        return cast("tuple[object, ...]", tree_unflatten(leaves, self.inputs))

    def on(self, device_type: str) -> "CallForm":
        """Returns the form for the same program on another kind of device.

        What lies on the CPU beside tensors on another device, as single numbers may, stays there.
        """
        types = [leaf.device_type for leaf in self.leaves if isinstance(leaf, TensorForm)]
        known = [kind for kind in types if kind is not None]
        main = next((kind for kind in known if kind != "cpu"), "cpu")
        leaves = [
            replace(leaf, device_type=device_type)
            if isinstance(leaf, TensorForm) and leaf.device_type == main
            else leaf
            for leaf in self.leaves
        ]
        return replace(self, leaves=tuple(leaves))

    def _flattened(self, args: tuple[object, ...], kwargs: dict[str, object]) -> list[object]:
        names = cast("list[str]", self.inputs.child(1).context)
        ordered = {name: kwargs[name] for name in names if name in kwargs}
        ordered.update({name: value for name, value in kwargs.items() if name not in ordered})
        leaves, spec = tree_flatten((args, ordered))
        if spec != self.inputs:
            raise InputError(
                f"the call does not have the structure it was compiled for: expected {self.inputs}"
                f", got {spec}"
            )
        return leaves

    def to_dict(self) -> dict[str, object]:
        """Returns the form as JSON values."""
        return {
            "inputs": treespec_dumps(self.inputs),
            "outputs": treespec_dumps(self.outputs),
            "leaves": [_leaf_to_json(leaf) for leaf in self.leaves],
        }

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "CallForm":
        """Returns the form that ``to_dict`` gave."""
        leaves = cast("list[dict[str, object]]", values["leaves"])
        inputs = treespec_loads(cast("str", values["inputs"]))
        outputs = treespec_loads(cast("str", values["outputs"]))
        return call_form(inputs, outputs, tuple(_leaf_from_json(leaf) for leaf in leaves))


def call_form(inputs: TreeSpec, outputs: TreeSpec, leaves: tuple[object, ...]) -> CallForm:
    """Returns the form of calls with these structures and leaves."""
    by_position = not inputs.child(1).num_leaves and inputs.child(0).num_children == len(leaves)
    plain = by_position and all(isinstance(leaf, TensorForm) for leaf in leaves)
    return CallForm(inputs, outputs, leaves, len(leaves) if plain else None)


def leaf_form(example: object, recorded: object) -> object:
    """Returns the form of one input from an example and its recorded (symbolic) value."""
    if not isinstance(example, Tensor):
        return example
    symbolic = recorded.shape if isinstance(recorded, Tensor) else example.shape
    return TensorForm.of(example, tuple(size_bounds(size) for size in symbolic))


def size_bounds(size: int | SymInt) -> tuple[int, int]:
    """Returns the smallest and largest value of a recorded size."""
    if not isinstance(size, SymInt):
        return size, size
    bounds = cast("_Bounds", size.node.shape_env.bound_sympy(size.node.expr))
    return _whole(bounds.lower, 0), _whole(bounds.upper, _NO_BOUND)


def has_upper_bound(bounds: tuple[int, int]) -> bool:
    """Tells whether a size has a largest value."""
    return bounds[1] < _NO_BOUND


def _whole(bound: object, otherwise: int) -> int:
    text = str(bound)
    return min(int(text), _NO_BOUND) if text.lstrip("-").isdigit() else otherwise


def _is_channels_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last)


def _bounds_text(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"{low}..{high}" if high < _NO_BOUND else f"{low}.."


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r:.40}"


def _leaf_to_json(leaf: object) -> dict[str, object]:
    if not isinstance(leaf, TensorForm):
        return {"constant": leaf}
    return {
        "dtype": str(leaf.dtype).removeprefix("torch."),
        "sizes": [list(bounds) for bounds in leaf.sizes],
        "strides": list(leaf.strides),
        "channels_last": leaf.channels_last,
        "shape": None if leaf.shape is None else list(leaf.shape),
        "device": leaf.device_type,
    }


def _leaf_from_json(values: dict[str, object]) -> object:
    if "constant" in values:
        return values["constant"]
    shape = cast("list[int] | None", values["shape"])
    sizes = cast("list[tuple[int, int]]", values["sizes"])
    return TensorForm(
        dtype=getattr(torch, str(values["dtype"])),
        sizes=tuple((low, high) for low, high in sizes),
        strides=tuple(cast("list[int]", values["strides"])),
        channels_last=bool(values["channels_last"]),
        shape=None if shape is None else tuple(shape),
        device_type=cast("str | None", values.get("device")),
    )
