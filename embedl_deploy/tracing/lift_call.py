"""One ATen call, as the rows of the lifting table read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, shape_of
from embedl_deploy.tracing.computed import ComputedWeight, computed_weight
from embedl_deploy.tracing.program import State

Option = int | float | bool | str | None | tuple[int, ...]


@dataclass(frozen=True)
class Lifting:
    """The module that one ATen call computes."""

    module_class: type[nn.Module]

    options: Mapping[str, Option]
    """Keyword arguments of the module's constructor."""

    inputs: tuple[Node, ...]
    """What the module is called with."""

    slots: Mapping[str, Node] = field(default_factory=dict[str, Node])
    """The ``get_attr`` node behind each parameter and buffer of the module."""

    training: bool | None = None
    """The call's own training flag, for operations that have one."""

    first_of_several: bool = False
    """Whether the operation returns a tuple of which the module returns the first."""

    computed: Mapping[str, ComputedWeight] = field(default_factory=dict[str, ComputedWeight])
    """How the weight and the bias are computed, where they are no parameters themselves."""


class Unliftable(Exception):  # noqa: N818  # not an error: the call stays an ATen call
    """Raised inside a row when the call is not what the module computes."""


class Call:
    """The arguments of one ATen call by name, with the checks that rows need."""

    def __init__(self, node: Node, state: Mapping[str, State]) -> None:
        self.node = node
        self.state = state
        self.bound = bound_arguments(node)

    def node_of(self, name: str) -> Node:
        """Returns the node given for ``name``."""
        value = self.bound.get(name)
        if not isinstance(value, Node):
            raise Unliftable
        return value

    def rank(self, name: str) -> int:
        """Returns the number of dimensions of the tensor given for ``name``."""
        value = self.node_of(name).meta.get("val")
        if not isinstance(value, Tensor):
            raise Unliftable
        return value.dim()

    def option(self, name: str) -> Option:
        """Returns the literal given for ``name``."""
        return _literal(self.bound.get(name))

    def integers(self, name: str, rank: int) -> tuple[int, ...]:
        """Returns ``rank`` integers given for ``name``; a single one is repeated."""
        value = self.option(name)
        if isinstance(value, int):
            return (value,) * rank
        if not isinstance(value, tuple) or len(value) not in (1, rank):
            raise Unliftable
        return value * rank if len(value) == 1 else value

    def compact(self, name: str) -> Option:
        """Returns integers given for ``name``, as one integer where all are equal."""
        value = self.option(name)
        if isinstance(value, tuple) and value and len(set(value)) == 1:
            return value[0]
        return value

    def require(self, **expected: Option) -> None:
        """Refuses the call unless each named literal is as given."""
        for name, value in expected.items():
            if self.bound.get(name) != value:
                raise Unliftable

    def parameter(self, name: str) -> Node:
        """Returns the ``get_attr`` node of the parameter given for ``name``."""
        node = self.node_of(name)
        if not isinstance(self.tensor(node), nn.Parameter):
            raise Unliftable
        return node

    def computed(self, *names: str) -> dict[str, ComputedWeight]:
        """Returns how each given tensor is computed that is neither a parameter nor missing."""
        found: dict[str, ComputedWeight] = {}
        for name in names:
            if self.bound.get(name) is None or self.node_of(name).op == "get_attr":
                continue
            computed = computed_weight(self.node_of(name), self.state)
            if computed is None:
                raise Unliftable
            found[name] = computed
        return found

    def buffer(self, name: str) -> Node:
        """Returns the ``get_attr`` node of the buffer given for ``name``."""
        node = self.node_of(name)
        if self.tensor(node) is None or isinstance(self.tensor(node), nn.Parameter):
            raise Unliftable
        return node

    def parameters(self, **slots: str) -> dict[str, Node]:
        """Returns the parameter of each slot whose argument is not None."""
        given = {slot: name for slot, name in slots.items() if self.bound.get(name) is not None}
        return {slot: self.parameter(name) for slot, name in given.items()}

    def tensor(self, node: Node) -> Tensor | None:
        """Returns the tensor that a ``get_attr`` node names."""
        if node.op != "get_attr":
            return None
        state = self.state.get(str(node.target))
        return None if state is None else state.tensor

    def shape(self, node: Node) -> tuple[int, ...]:
        """Returns the shape of the tensor that a ``get_attr`` node names."""
        tensor = self.tensor(node)
        if tensor is None:
            raise Unliftable
        return tuple(tensor.shape)

    def weight_shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a parameter, or of what is computed from some."""
        if shape_of(self.node_of(name)) is None:
            raise Unliftable
        return sizes_of(self.node_of(name))


def sizes_of(node: Node) -> tuple[int, ...]:
    """Returns the shape of a parameter, or of what is computed from some: fixed sizes alone."""
    return tuple(size for size in shape_of(node) or () if isinstance(size, int))


def _literal(value: Argument) -> Option:
    if isinstance(value, (list, tuple)):
        integers = tuple(item for item in value if isinstance(item, int))
        if len(integers) != len(value):
            raise Unliftable
        return integers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Unliftable
