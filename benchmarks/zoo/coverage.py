"""Counts, while a model runs, the products whose two operands come out of a dequantize.

Nothing here asks the package what it quantized: the total is that of ``torch.utils.flop_counter``
on the float model, and the share is read off the calls that reach torch's dispatcher while the
converted graph runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from embedl_deploy.graph.flat_inputs import flat_inputs

_PRODUCTS = {
    torch.ops.aten.convolution: (0, 1),
    torch.ops.aten.addmm: (1, 2),
    torch.ops.aten.mm: (0, 1),
    torch.ops.aten.bmm: (0, 1),
    torch.ops.aten.baddbmm: (1, 2),
}
"""The products, and where their operands stand."""

_OFTEN_BETWEEN_ACTIVATIONS = (
    torch.ops.aten.mm,
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
)
"""Products that count as linear layers only where one operand is made of constants."""

_MOVES_DATA = frozenset({
    "_unsafe_view", "alias", "cat", "clone", "constant_pad_nd", "detach", "expand", "flatten",
    "permute", "pixel_shuffle", "reshape", "select", "slice", "split", "split_with_sizes",
    "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "view",
})  # fmt: skip
"""Ops whose output holds nothing but values of their inputs (and zeros)."""


@dataclass(frozen=True)
class Uncovered:
    """A product of which an operand is in float."""

    node: Node | None
    """The node of the converted graph that ran it."""

    op: str
    macs: int
    float_operands: tuple[str, ...]
    """``"activation"``, ``"weight"`` or both."""


@dataclass
class Count:
    """The products of one run, in multiply-accumulates."""

    covered: int = 0
    uncovered: list[Uncovered] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Returns all products of the run, covered or not."""
        return self.covered + sum(item.macs for item in self.uncovered)


def float_macs(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[int, int]:
    """Returns the convolution, linear and ``addmm`` multiply-accumulates of the float model.

    Returns:
        Those of layers, and those between two activations, which count for nothing here. Their
        sum is what ``FlopCounterMode`` found.
    """
    mode = _Watching(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), mode:
        model(*args, **kwargs)
    by_op = cast("Mapping[object, int]", counter.get_flop_counts()["Global"])
    total = sum(by_op.get(op, 0) for op in _PRODUCTS) // 2
    if total != mode.count.total + mode.left_aside:
        raise AssertionError(f"{total} counted by torch, {mode.count.total + mode.left_aside} here")
    return total - mode.left_aside, mode.left_aside


def converted_macs(
    converted: GraphModule, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Count:
    """Returns what of the products of a converted graph runs on dequantized operands."""
    mode = _Watching(converted)
    inputs = flat_inputs(converted, args, kwargs)
    with mode, torch.no_grad():
        _NamingInterpreter(converted, mode).run(*inputs, enable_io_processing=False)
    return mode.count


class _Watching(TorchDispatchMode):
    """Follows what dequantize ops yield through ops that only move values.

    What is computed from constants alone is a constant too, and may be a weight; a product of two
    constants could run once, counts for nothing, and what it yields is no weight. Nor is a tensor
    that is made from nothing, as positions are; tracing folds what is computed from those alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.count = Count()
        self.left_aside = 0
        self.node: Node | None = None
        self.dequantized = WeakTensorKeyDictionary()
        self.constants = WeakTensorKeyDictionary()
        self.folded = WeakTensorKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.constants[tensor] = True

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if packet in _PRODUCTS:
            self._note(func, args, kwargs or {}, result)
        elif packet.__name__.startswith("dequantize_per_") or (
            packet.__name__ in _MOVES_DATA and _all_in(self.dequantized, read)
        ):
            _add(self.dequantized, result)
        if _all_in(self.constants, read) and packet not in _PRODUCTS:
            _add(self.constants, result)
        elif all(map(self._is_fixed, read)) and not _is_random(func):
            _add(self.folded, result)
        return result

    def _is_fixed(self, tensor: Tensor) -> bool:
        return tensor in self.constants or tensor in self.folded

    def _note(
        self,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        result: object,
    ) -> None:
        formula = flop_registry[func.overloadpacket]
        macs = int(formula(*args, **kwargs, out_val=result)) // 2
        operands = [cast("Tensor", args[place]) for place in _PRODUCTS[func.overloadpacket]]
        constant = [operand in self.constants for operand in operands]
        is_between = func.overloadpacket in _OFTEN_BETWEEN_ACTIVATIONS and not any(constant)
        if is_between or all(map(self._is_fixed, operands)):
            self.left_aside += macs
            return
        missing = tuple(
            name
            for name, operand in zip(("activation", "weight"), operands, strict=True)
            if operand not in self.dequantized
        )
        if missing:
            self.count.uncovered.append(Uncovered(self.node, str(func), macs, missing))
        else:
            self.count.covered += macs


def _is_random(func: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _all_in(known: WeakTensorKeyDictionary, tensors: list[Tensor]) -> bool:
    return bool(tensors) and all(tensor in known for tensor in tensors)


def _add(known: WeakTensorKeyDictionary, result: object) -> None:
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            known[leaf] = True


class _NamingInterpreter(Interpreter):
    """Tells the mode which node is running."""

    def __init__(self, graph_module: GraphModule, mode: _Watching) -> None:
        super().__init__(graph_module)
        self.mode = mode

    def run_node(self, n: Node) -> object:
        self.mode.node = n
        return super().run_node(n)
