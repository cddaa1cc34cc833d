"""Reads products of an activation with a weight as the linear layers that they are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import dtype_of, graph_module_of, is_call, shape_of
from embedl_deploy.patterns.shapes import is_one, same_size
from embedl_deploy.rewriting import Refusal
from embedl_deploy.tracing.computed import computed_weight
from embedl_deploy.tracing.program import State

_ATEN = torch.ops.aten
PRODUCTS = (
    _ATEN.einsum.default,
    _ATEN.matmul.default,
    _ATEN.bmm.default,
    _ATEN.mm.default,
    _ATEN.linear.default,
)


@dataclass(frozen=True)
class WeightProduct:
    """A product that is one linear layer, between dimensions in another order."""

    activation: Node
    weight: Node

    activation_order: list[int]
    """Dimensions of the activation as (rows..., summed...)."""

    weight_order: list[int]
    """Dimensions of the weight as (columns..., summed...)."""

    rows: int
    """How many dimensions of the activation stay."""

    columns: list[int]
    """Sizes that the weight puts in their place."""

    in_features: int
    """The product of the summed sizes."""

    result_order: list[int]
    """Dimensions of (rows..., columns...) in the order of the result."""

    @property
    def out_features(self) -> int:
        """The product of the sizes of ``columns``."""
        return math.prod(self.columns)


class Attributes(Mapping[str, State]):
    """The tensors of a graph module by name, looked up when they are asked for."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module

    def __getitem__(self, name: str) -> State:
        try:
            found = attribute_of(self.graph_module, name)
        except AttributeError:
            raise KeyError(name) from None
        if not isinstance(found, Tensor):
            raise KeyError(name)
        return State(found, persistent=True)

    def __iter__(self) -> Iterator[str]:
        reads = self.graph_module.graph.find_nodes(op="get_attr")
        return (name for name in dict.fromkeys(str(node.target) for node in reads) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def weight_of(node: Node) -> Node | None:
    """Returns the first operand that is made of parameters alone, None if all or none are."""
    operands = node.all_input_nodes
    weights = [operand for operand in operands if _is_weight(operand)]
    return weights[0] if weights and len(weights) < len(operands) else None


def _is_weight(node: Node) -> bool:
    state = Attributes(graph_module_of(node))
    if node.op == "get_attr":
        found = state.get(str(node.target))
        return found is not None and isinstance(found.tensor, nn.Parameter)
    return computed_weight(node, state) is not None


def weight_product(node: Node, weight: Node) -> WeightProduct | Refusal:
    """Returns the linear layer that a product with ``weight`` is, or why it is none."""
    operands = node.all_input_nodes
    if len(operands) != 2:
        return Refusal(f"it multiplies {len(operands)} tensors, not two", node)
    letters = _letters(node)
    if letters is None:
        return Refusal(f"'{node.args[0]}' takes one index of a tensor twice", node)
    first, second, result = letters
    left, right = _operands(node)
    if left is weight:
        left, right, first, second = right, left, second, first
    right, second = _without_broadcast(right, first, second, result)
    dtype = dtype_of(left)
    if dtype is None or not dtype.is_floating_point or dtype != dtype_of(right):
        return Refusal(f"it multiplies {dtype} by {dtype_of(right)}", node)
    return _objection(node, (left, right), (first, second, result)) or _product(
        left, right, first, second, result
    )


def _objection(
    node: Node, operands: tuple[Node, Node], letters: tuple[str, str, str]
) -> Refusal | None:
    """Returns why the weight is no linear map of the activation's summed dimensions."""
    (first, second, result), (left, right) = letters, operands
    equation = f"{first},{second}->{result}"
    left_shape, right_shape = shape_of(left) or (), shape_of(right) or ()
    if not all(isinstance(size, int) for size in right_shape):
        return Refusal("the shape of its weight depends on an input", right)
    summed = [letter for letter in first if letter in second and letter not in result]
    if not summed:
        return Refusal(f"'{equation}' sums over no index of both tensors", node)
    for letter in first + second:
        if letter in first and letter in second and letter in result:
            reason = f"the index '{letter}' of '{equation}' has a weight of its own at each place"
            return Refusal(reason, node)
        size = left_shape[first.index(letter)] if letter in first else None
        other = right_shape[second.index(letter)] if letter in second else None
        if letter in summed and not (size and other and same_size(size, other)):
            return Refusal(f"the summed index '{letter}' of '{equation}' is broadcast", node)
        if letter not in summed and letter not in result and not (other and is_one(other)):
            return Refusal(f"'{equation}' sums over '{letter}' of one tensor alone", node)
    return None


def _product(left: Node, right: Node, first: str, second: str, result: str) -> WeightProduct:
    sizes = dict(zip(second, shape_of(right) or (), strict=True))
    rows = [letter for letter in first if letter not in second]
    summed = [letter for letter in first if letter in second]
    columns = [letter for letter in result if letter in second]
    ones = [letter for letter in second if letter not in first and letter not in result]
    made = [*rows, *columns]
    return WeightProduct(
        left,
        right,
        [first.index(letter) for letter in (*rows, *summed)],
        [second.index(letter) for letter in (*ones, *columns, *summed)],
        len(rows),
        [int(sizes[letter]) for letter in columns],
        math.prod(int(sizes[letter]) for letter in summed),
        [made.index(letter) for letter in result],
    )


def _operands(node: Node) -> tuple[Node, Node]:
    given = node.args[1] if is_call(node, _ATEN.einsum.default) else node.args[:2]
    assert isinstance(given, (list, tuple))
    left, right = given
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    return left, right


def _without_broadcast(weight: Node, first: str, second: str, result: str) -> tuple[Node, str]:
    """Returns the weight with one letter of its own for each dimension that repeats what it holds.

    ``weight.unsqueeze(0).expand(batch, -1, -1)`` is the same weight for every place of the batch.
    """
    source = weight
    while is_call(source, _ATEN.expand.default):
        inner = source.args[0]
        if not isinstance(inner, Node) or len(shape_of(inner) or ()) != len(second):
            break
        source = inner
    shape = shape_of(source) or ()
    unused = iter(letter for letter in ascii_letters if letter not in first + second + result)
    letters = [
        next(unused) if letter in first and letter in result and is_one(size) else letter
        for letter, size in zip(second, shape, strict=True)
    ]
    return source, "".join(letters)


def _letters(node: Node) -> tuple[str, str, str] | None:
    """Returns the indices of both operands and of the result; None if one is taken twice."""
    left, right = (len(shape_of(operand) or ()) for operand in _operands(node))
    if is_call(node, _ATEN.einsum.default):
        letters = _of_equation(str(node.args[0]).replace(" ", ""), left, right)
    elif is_call(node, _ATEN.linear.default):
        letters = _of_linear(left, right)
    else:
        letters = _of_matmul(left, right)
    return None if any(len(set(group)) != len(group) for group in letters) else letters


def _of_matmul(left: int, right: int) -> tuple[str, str, str]:
    batch = ascii_letters[: max(left, right, 2) - 2]
    first = batch[len(batch) - max(left - 2, 0) :] + ("R" if left > 1 else "") + "S"
    second = batch[len(batch) - max(right - 2, 0) :] + "S" + ("C" if right > 1 else "")
    return first, second, batch + ("R" if left > 1 else "") + ("C" if right > 1 else "")


def _of_linear(left: int, right: int) -> tuple[str, str, str]:
    rows, columns = ascii_letters[: left - 1], "C" * (right - 1)
    return rows + "S", columns + "S", rows + columns


def _of_equation(equation: str, left: int, right: int) -> tuple[str, str, str]:
    inputs, arrow, result = equation.partition("->")
    first, _, second = inputs.partition(",")
    if not arrow:
        once = [letter for letter in inputs if letter.isalpha() and inputs.count(letter) == 1]
        result = ("..." if "..." in inputs else "") + "".join(sorted(once))
    unused = [letter for letter in ascii_letters if letter not in equation]
    counts = [rank - len(part) + 3 for rank, part in ((left, first), (right, second))]
    given = [count for count, part in zip(counts, (first, second), strict=True) if "..." in part]
    dots = "".join(unused[: max(given, default=0)])
    return (
        first.replace("...", dots[len(dots) - counts[0] :]),
        second.replace("...", dots[len(dots) - counts[1] :]),
        result.replace("...", dots),
    )
