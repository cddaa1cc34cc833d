"""Conditions for ``where=`` that can say what they ask for and what they found."""

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import dtype_of, module_of, shape_of, value_of
from embedl_deploy.rewriting.difference import Aspect


@runtime_checkable
class Condition(Protocol):
    """A predicate on nodes that ``explain`` can put into words; any function will do instead."""

    @property
    def aspect(self) -> Aspect:
        """What it looks at."""
        ...

    @property
    def expected(self) -> str:
        """What it asks for."""
        ...

    def found(self, node: Node) -> str:
        """Returns what ``node`` has instead."""
        ...

    def __call__(self, node: Node) -> bool:
        """Tells whether ``node`` fulfils it."""
        ...


@dataclass(frozen=True, init=False)
class HasDtype:
    """The node yields one tensor of one of these dtypes, listed or in a tuple."""

    dtypes: tuple[torch.dtype, ...]
    aspect: Aspect = "dtype"

    def __init__(self, *dtypes: torch.dtype | tuple[torch.dtype, ...]) -> None:
        listed = tuple(dtype for given in dtypes for dtype in _several(given))
        if not listed or not all(isinstance(dtype, torch.dtype) for dtype in listed):
            raise PatternError(
                f"HasDtype takes dtypes, got {dtypes!r}: write HasDtype(torch.float32)"
            )
        object.__setattr__(self, "dtypes", listed)

    @property
    def expected(self) -> str:
        return " or ".join(str(dtype) for dtype in self.dtypes)

    def found(self, node: Node) -> str:
        return str(dtype_of(node))

    def __call__(self, node: Node) -> bool:
        return dtype_of(node) in self.dtypes


@dataclass(frozen=True)
class HasRank:
    """The node yields one tensor with a number of dimensions from ``least`` to ``most``."""

    least: int
    most: int | None = None
    aspect: Aspect = "shape"

    @property
    def expected(self) -> str:
        most = self.least if self.most is None else self.most
        return f"rank {self.least}" if most == self.least else f"rank {self.least} to {most}"

    def found(self, node: Node) -> str:
        shape = shape_of(node)
        return "no tensor" if shape is None else f"rank {len(shape)} ({list(shape)})"

    def __call__(self, node: Node) -> bool:
        shape, most = shape_of(node), self.least if self.most is None else self.most
        return shape is not None and self.least <= len(shape) <= most


@dataclass(frozen=True)
class HasShape:
    """The node yields one tensor of this shape; None stands for any size."""

    sizes: tuple[int | None, ...]
    aspect: Aspect = "shape"

    @property
    def expected(self) -> str:
        return f"[{', '.join('any' if size is None else str(size) for size in self.sizes)}]"

    def found(self, node: Node) -> str:
        shape = shape_of(node)
        return "no tensor" if shape is None else str(list(shape))

    def __call__(self, node: Node) -> bool:
        shape = shape_of(node)
        if shape is None or len(shape) != len(self.sizes):
            return False
        # A symbolic size is no int: it is refused, and no guard is added to it.
        pairs = zip(shape, self.sizes, strict=True)
        return all(want is None or (isinstance(size, int) and size == want) for size, want in pairs)


@dataclass(frozen=True)
class HasStaticShape:
    """The node yields one tensor with no dynamic dimension."""

    aspect: Aspect = "shape"
    expected: str = "no dynamic dimension"

    def found(self, node: Node) -> str:
        return str(list(shape_of(node) or ()))

    def __call__(self, node: Node) -> bool:
        return all(isinstance(size, int) for size in shape_of(node) or (None,))


@dataclass(frozen=True)
class IsEval:
    """The node calls a module in eval mode."""

    aspect: Aspect = "training"
    expected: str = "a module in eval mode"

    def found(self, node: Node) -> str:
        module = module_of(node)
        return "no module" if module is None else f"{type(module).__name__} in training mode"

    def __call__(self, node: Node) -> bool:
        module = module_of(node)
        return module is not None and not module.training


@dataclass(frozen=True, init=False)
class HasOptions:
    """The node calls a module whose attributes have these values.

    A layer's options are attributes of its module, no arguments of the call, so that no literal
    of a tree sees them: ``Op(nn.Softplus, where=HasOptions(beta=1, threshold=20))``.
    """

    options: tuple[tuple[str, object], ...]
    aspect: Aspect = "literal"

    def __init__(self, **options: object) -> None:
        if not options:
            raise PatternError(
                "HasOptions takes the options of a layer by name, got none: write "
                "HasOptions(beta=1)"
            )
        object.__setattr__(self, "options", tuple(options.items()))

    @property
    def expected(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options)

    def found(self, node: Node) -> str:
        module = module_of(node)
        if module is None:
            return "no module"
        others = ((name, _option(module, name)) for name, _ in self.options)
        return ", ".join(f"{name}={value!r}" for name, value in others)

    def __call__(self, node: Node) -> bool:
        module = module_of(node)
        return module is not None and all(
            _option(module, name) == value for name, value in self.options
        )


@dataclass(frozen=True)
class IsParameter:
    """The node reads a parameter or a buffer: ``Input(where=IsParameter())``."""

    aspect: Aspect = "value"
    expected: str = "a parameter or buffer"

    def found(self, node: Node) -> str:
        return "an input" if node.op == "placeholder" else "a computed value"

    def __call__(self, node: Node) -> bool:
        return node.op == "get_attr" and isinstance(value_of(node), Tensor)


@dataclass(frozen=True, init=False)
class All:
    """Every one of several conditions of this module, listed or in a tuple."""

    conditions: tuple[Condition, ...]

    def __init__(self, *conditions: Condition | tuple[Condition, ...]) -> None:
        listed = tuple(condition for given in conditions for condition in _several(given))
        if not listed or not all(isinstance(condition, Condition) for condition in listed):
            raise PatternError(
                f"All takes conditions such as IsEval() and HasRank(2), got {conditions!r}: a "
                "plain function is a where= of its own"
            )
        object.__setattr__(self, "conditions", listed)

    @property
    def aspect(self) -> Aspect:
        return self.conditions[0].aspect

    @property
    def expected(self) -> str:
        return " and ".join(condition.expected for condition in self.conditions)

    def failing(self, node: Node) -> Condition:
        """Returns the first condition that ``node`` does not fulfil, else the first."""
        lost = (condition for condition in self.conditions if not condition(node))
        return next(lost, self.conditions[0])

    def found(self, node: Node) -> str:
        return self.failing(node).found(node)

    def __call__(self, node: Node) -> bool:
        return all(condition(node) for condition in self.conditions)


def _option(module: nn.Module, name: str) -> object:
    return getattr(module, name, "none of that name")


def _several(given: object) -> tuple[object, ...]:
    return cast("tuple[object, ...]", given) if isinstance(given, tuple) else (given,)


def facts_of(node: Node) -> str:
    """Returns what a condition may have looked at: dtype, shape, readers, training mode."""
    value, module = value_of(node), module_of(node)
    facts = [f"{len(node.users)} readers" if len(node.users) != 1 else "one reader"]
    if isinstance(value, Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        facts.insert(0, f"{str(value.dtype).removeprefix('torch.')}[{sizes}]")
    if module is not None:
        facts.append("training mode" if module.training else "eval mode")
    return ", ".join(facts)
