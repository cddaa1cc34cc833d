"""One place in a graph where a pattern fits."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, Target

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import graph_module_of, module_of
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.rewriting.arguments import (
    require_arguments,
    require_module,
    require_target,
    require_tensor,
)
from embedl_deploy.rewriting.refusal import Refusal

if TYPE_CHECKING:
    from embedl_deploy.rewriting.pattern import Pattern

M = TypeVar("M", bound=nn.Module)


class Builder(Protocol):
    """What ``PatternMatch`` builds with; the engine of rewriting provides it."""

    def call_module(
        self, module: nn.Module, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        """Registers ``module`` under a free name and returns a new node that calls it."""
        ...

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        """Returns a new node that calls ``target``."""
        ...

    def get_attr(self, tensor: Tensor, name: str, replaces: tuple[str, ...]) -> Node:
        """Registers ``tensor`` under a free name and returns a new node that reads it."""
        ...


class PatternMatch:
    """The nodes that a pattern consumes, the values it reads, and names for them.

    Inside ``Pattern.replace`` it also builds: ``call_module``, ``call_function`` and ``get_attr``
    insert nodes where the match stands, name them, and fill in their metadata.
    """

    def __init__(
        self,
        pattern: "Pattern",
        graph_module: GraphModule,
        root: Node,
        nodes: Sequence[Node],
        captures: Mapping[str, tuple[Node, ...]],
        literals: Mapping[str, object] | None = None,
    ) -> None:
        self.pattern = pattern
        """The pattern that fits here."""

        self.graph_module = graph_module
        """The graph it fits in."""

        self.root = root
        """The last node of the match: the one whose readers get the replacement."""

        self.nodes = tuple(sorted(dict.fromkeys(nodes)))
        """The nodes that the match consumes, in graph order."""

        self.captures = dict(captures)
        """Nodes by the names that the tree gives them."""

        self.literals = dict(literals or {})
        """Values by the names that the tree gives them."""

        self.apply = True
        """Whether to rewrite here; set it to False in a plan to veto."""

        self.refusal: Refusal | None = None
        """Why the match is left alone, None if it is not."""

        self.stage: str = pattern.phase.value
        """The stage that found the match."""

        self.scope = ""
        """Path of the condition's or loop's body that holds the match, "" for the graph itself."""

        self.builder: Builder | None = None

    @classmethod
    def of(
        cls,
        pattern: "Pattern",
        graph_module: GraphModule,
        *,
        root: Node,
        nodes: Sequence[Node],
        captures: Mapping[str, Node | tuple[Node, ...]] | None = None,
        literals: Mapping[str, object] | None = None,
    ) -> "PatternMatch":
        """Returns a match found by hand, for patterns that override ``Pattern.match``.

        Raises:
            PatternError: What should be nodes are not.
        """
        _require_nodes(pattern.name, root, nodes, captures or {})
        runs = {
            name: (found,) if isinstance(found, Node) else tuple(found)
            for name, found in (captures or {}).items()
        }
        return cls(pattern, graph_module, root, nodes, runs, literals)

    @property
    def first(self) -> Node:
        """The earliest consumed node."""
        return self.nodes[0]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes that the match reads and does not consume, in the order they are read."""
        consumed = set(self.nodes)
        reads = {read: None for node in self.nodes for read in node.all_input_nodes}
        return tuple(read for read in reads if read not in consumed)

    def __contains__(self, name: str) -> bool:
        return name in self.captures

    def __getitem__(self, name: str) -> Node:
        return self.run(name)[-1]

    def run(self, name: str) -> tuple[Node, ...]:
        """Returns the nodes captured under ``name``, a run of a wildcard in graph order."""
        try:
            return self.captures[name]
        except KeyError:
            known = ", ".join(self.captures) or "none"
            raise PatternError(
                f"{self.pattern.name} asks its match for {name!r}; captured here: {known}"
                f"{self._optional(name)}"
            ) from None

    def module(self, name: str, kind: type[M]) -> M:
        """Returns the module that the node captured under ``name`` calls, of a run the last one."""
        return self._module_at(self[name], name, kind)

    def modules(self, name: str, kind: type[M]) -> tuple[M, ...]:
        """Returns the modules that the run captured under ``name`` calls, in graph order."""
        return tuple(self._module_at(node, name, kind) for node in self.run(name))

    def _module_at(self, node: Node, name: str, kind: type[M]) -> M:
        module = module_of(node)
        if not isinstance(module, kind):
            cure = f": match.parameter({name!r}) is the tensor" if node.op == "get_attr" else ""
            raise PatternError(
                f"{self.pattern.name} expects {name!r} to call a {kind.__name__}, "
                f"%{node.name} {_does(node, module)}{cure}"
            )
        return module

    def parameter(self, name: str) -> Tensor:
        """Returns the parameter or buffer that the node captured under ``name`` reads."""
        node = self[name]
        held = attribute_of(graph_module_of(node), str(node.target)) if _reads(node) else None
        if not isinstance(held, Tensor):
            module = module_of(node)
            cure = "" if module is None else f": match.module({name!r}, …) is the module"
            raise PatternError(
                f"{self.pattern.name} expects {name!r} to read a parameter or buffer, "
                f"%{node.name} {_does(node, module)}{cure}"
            )
        return held

    def literal(self, name: str) -> object:
        """Returns the literal captured under ``name``."""
        if name not in self.literals:
            known = ", ".join(self.literals) or "none"
            raise PatternError(
                f"{self.pattern.name} asks its match for literal {name!r}; captured here: {known}"
                f"{self._optional(name)}"
            )
        return self.literals[name]

    def call_module(self, module: nn.Module, *args: Argument, **kwargs: Argument) -> Node:
        """Inserts a call of ``module``; one that is registered already keeps its name."""
        builder = self._building()
        require_module(self.pattern.name, module)
        require_arguments(self.pattern.name, "call_module", args, kwargs)
        return builder.call_module(module, args, kwargs)

    def call_function(self, target: Target, *args: Argument, **kwargs: Argument) -> Node:
        """Inserts a call of an ATen op, one overload of it, or of a function."""
        builder = self._building()
        require_target(self.pattern.name, target, self.graph_module)
        require_arguments(self.pattern.name, "call_function", args, kwargs)
        return builder.call_function(target, args, kwargs)

    def get_attr(self, tensor: Tensor, name: str, replaces: tuple[str, ...] = ()) -> Node:
        """Inserts a read of a new parameter or buffer.

        Args:
            tensor: A parameter; a tensor computed from trainable ones, whose values become a
                parameter of their own; or any other tensor, which becomes a buffer.
            name: The wished name; a free one is made from it.
            replaces: The keys of the model's state dict that it takes the place of.

        Raises:
            PatternError: The state dict has no such key, or the name is none for a parameter.
        """
        builder = self._building()
        require_tensor(self.pattern.name, tensor, name)
        if isinstance(cast("object", replaces), str):
            raise PatternError(f"replaces is a tuple of keys, got {replaces!r}: write (key,)")
        for key in () if self.scope else replaces:
            self._require_key(key)
        return builder.get_attr(tensor, name, replaces)

    def _require_key(self, key: str) -> None:
        """Asserts that the model's state dict has ``key``, or had it before earlier rewrites."""
        earlier = record_of(self.graph_module).key_map if has_record(self.graph_module) else {}
        if key in earlier or _has_state(self.graph_module, key):
            return
        known = [*earlier, *self.graph_module.state_dict()]
        near = get_close_matches(key, known, n=1, cutoff=0.0)
        nearest = f"; the nearest is {near[0]!r}" if near else ""
        raise PatternError(
            f"{self.pattern.name} says replaces={key!r}, which is no key of the model's state "
            f"dict{nearest}"
        )

    def _optional(self, name: str) -> str:
        """Returns why a name of the tree may be missing from a match, "" for any other name."""
        from embedl_deploy.rewriting.tree_walk import optional_link

        tree = self.pattern.tree
        link = None if tree is None else optional_link(tree, name)
        if link is None:
            return ""
        test = f": test {link!r} in match first" if link else ""
        return f"; it sits in a part of the tree that may be absent{test}"

    def _building(self) -> Builder:
        if self.builder is None:
            raise PatternError(
                f"{self.pattern.name} builds nodes outside replace(): "
                "a match can only be changed by the engine that applies it"
            )
        return self.builder

    def __repr__(self) -> str:
        names = ", ".join(f"%{node.name}" for node in self.nodes)
        return f"PatternMatch({self.pattern.name} at {names})"


def _require_nodes(
    rule: str,
    root: object,
    nodes: Sequence[object],
    captures: Mapping[str, object],
) -> None:
    given: list[tuple[str, object]] = [("root", root)]
    given += [(f"nodes[{place}]", node) for place, node in enumerate(nodes)]
    for name, found in captures.items():
        several = (
            cast("tuple[object, ...]", found) if isinstance(found, (tuple, list)) else (found,)
        )
        given += [(f"captures[{name!r}]", node) for node in several]
    for where, node in given:
        if not isinstance(node, Node):
            raise PatternError(
                f"{rule} must give PatternMatch.of nodes of the graph, got {node!r} of type "
                f"{type(node).__name__} as {where}"
            )


def _reads(node: Node) -> bool:
    return node.op == "get_attr"


def _does(node: Node, module: nn.Module | None) -> str:
    """Returns what a node does, for messages."""
    if module is not None:
        return f"calls {type(module).__name__}"
    if node.op == "placeholder":
        return "is an input of the graph"
    return f"{'reads' if _reads(node) else 'calls'} {node.target}"


def _has_state(model: nn.Module, key: str) -> bool:
    """Tells whether ``model`` has a parameter or buffer at ``key``."""
    value: object = model
    for part in key.split("."):
        value = getattr(value, part, None)
    return isinstance(value, Tensor)
