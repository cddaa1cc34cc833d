"""What a lowered model takes and returns: parameters, leaves, sizes, guards. Plain data."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

from dataclasses import dataclass, field
from inspect import _ParameterKind as ParameterKind

import torch

from embedl_deploy.lowering.structure import Structure

Size = int | str
"""A dimension: a number, or an expression of symbols such as ``s0`` or ``2*s0``."""


@dataclass(frozen=True)
class TensorInput:
    """A tensor that the graph reads."""

    name: str
    """How the caller writes it: ``x``, ``batch["mask"]``."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[Size, ...]

    memory_format: torch.memory_format = torch.contiguous_format
    """The layout that the engines were built for; another one is copied into it first."""


@dataclass(frozen=True)
class SizeInput:
    """A Python integer that may vary."""

    name: str
    size: str
    """The symbol, or the expression, that it is."""


@dataclass(frozen=True)
class ConstantInput:
    """A Python value that tracing fixed; calls must pass the same one."""

    name: str
    value: object


InputLeaf = TensorInput | SizeInput | ConstantInput


@dataclass(frozen=True)
class Result:
    """An output leaf that the graph computes."""

    index: int


@dataclass(frozen=True)
class PassedInput:
    """An output leaf that is an input leaf."""

    index: int


@dataclass(frozen=True)
class ConstantOutput:
    """An output leaf that is a Python value."""

    value: object


@dataclass(frozen=True)
class SizeOutput:
    """An output leaf that is an integer computed from sizes of inputs."""

    size: str


OutputLeaf = Result | PassedInput | ConstantOutput | SizeOutput


@dataclass(frozen=True)
class Parameter:
    """One parameter of ``forward``."""

    name: str
    kind: ParameterKind
    structure: Structure | None
    """The nested value it holds; None if tracing never saw it, so that only the default will do."""

    has_default: bool = False
    default: object = None


@dataclass(frozen=True)
class SymbolRange:
    """The values that a symbolic size may have."""

    lower: int
    upper: int | None
    """None: no bound."""

    example: int
    """The value it had in the example inputs."""


@dataclass(frozen=True)
class Signature:
    """Everything that binding, guards and the outputs' structure need."""

    parameters: tuple[Parameter, ...]
    inputs: tuple[InputLeaf, ...]
    arguments: tuple[int, ...]
    """The input leaves that the graph takes, in its order."""

    output: Structure
    outputs: tuple[OutputLeaf, ...]
    symbols: dict[str, SymbolRange] = field(default_factory=dict[str, SymbolRange])
    constraints: tuple[str, ...] = ()
    """Conditions on symbols that tracing relied on, such as ``Eq(Mod(s0, 4), 0)``."""

    symbol_sources: dict[str, str] = field(default_factory=dict[str, str])
    """For each symbol the dimension it was first seen in, for messages."""
