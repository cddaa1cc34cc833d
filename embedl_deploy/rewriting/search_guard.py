# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Notices when a rule changes the model while it only looks for what fits."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting.finding import declined, found_at
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.match_guard import is_trusted, keep
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.tensor_guard import TensorGuard
from embedl_deploy.rewriting.tree_walk import all_trees

_OWN = "embedl_deploy."

_STEP = "match() or a where= condition"


class SearchGuard:
    """What rules can reach, as it is before their ``match`` and their conditions run.

    Args:
        graph_module: The graph that is searched.
        nodes: What to watch in it; all nodes if None.
        whole: Whether to copy the model's tensors, so that their values can be put back.
    """

    def __init__(
        self, graph_module: GraphModule, nodes: Iterable[Node] | None = None, *, whole: bool
    ) -> None:
        self.graph_module = graph_module
        self.nodes = {
            node: keep(node) for node in (graph_module.graph.nodes if nodes is None else nodes)
        }
        self.tensors = TensorGuard(self.nodes, whole=whole)
        self.created: list[Node] = []

    def __enter__(self) -> Self:
        self.graph_module._register_create_node_hook(self.created.append)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.graph_module._unregister_create_node_hook(self.created.append)

    def found(self, rule: Pattern, roots: list[Node]) -> list[PatternMatch | None]:
        """Returns what ``rule`` finds at each root; where it changed something, why it may not.

        Raises:
            PatternError: What it changed cannot be taken back.
        """
        found = [found_at(rule, root, self.graph_module) for root in roots]
        if not self._taken_back(rule):
            return found
        # It is as it was: asked again root by root, the rule shows where it does that.
        return [self._found_alone(rule, root) for root in roots]

    def _found_alone(self, rule: Pattern, root: Node) -> PatternMatch | None:
        found = found_at(rule, root, self.graph_module)
        changed = self._taken_back(rule)
        if not changed:
            return found
        refusal = Refusal(
            f"{_STEP} changed {changed}, which the user's model shares: only ask there, and "
            "change things in replace(), by what it builds",
            root,
        )
        return declined(rule, root, self.graph_module, refusal)

    def _taken_back(self, rule: Pattern) -> str:
        """Returns what was changed, "" if nothing; all is as it was then."""
        gone = [node.name for node in self.nodes if node._erased]
        if gone:
            raise PatternError(
                f"{rule.name} erased %{gone[0]} in {_STEP}, past the engine, which cannot take "
                "that back: only ask there, and leave erasing to the engine"
            )
        made, changed = self._graph_taken_back()
        held = self.tensors.changed()
        if self.tensors.lost:
            raise PatternError(
                f"{rule.name} changed {', '.join(self.tensors.lost)} in {_STEP}, in place, and the "
                "user's model shares them: their values are lost. Only ask there; with verify=True "
                "the tensors are copied first, and put back"
            )
        told = [f"{', '.join(held)} in place"] if held else []
        told += [f"the arguments or target of {', '.join(changed)}"] if changed else []
        told += [f"the graph, where it inserted {', '.join(made)}"] if made else []
        return " and ".join(told)

    def _graph_taken_back(self) -> tuple[list[str], list[str]]:
        """Erases what was inserted and puts arguments back; returns the names of both."""
        changed = [node for node, kept in self.nodes.items() if kept.is_changed()]
        for node in changed:
            self.nodes[node].restore()
            self.nodes[node] = keep(node)
        made = [node for node in self.created if not node._erased]
        for node in reversed(made):
            node.graph.erase_node(node)
        self.created.clear()
        return [f"%{node.name}" for node in made], [f"%{node.name}" for node in changed]


Search = Callable[[Pattern, list[Node]], Iterator[tuple[Node, PatternMatch | None]]]
"""Given a rule and where it may end: each root with what the rule finds there."""


@contextmanager
def watching(
    graph_module: GraphModule, rules: Sequence[Pattern], *, whole: bool
) -> Generator[Search]:
    """Yields what looks for the matches of ``rules`` in a graph, those under guard that need it.

    One guard serves them all; where all rules only compare, as the package's own do, there is none.
    """
    own = {id(rule) for rule in rules if searches_itself(rule)}

    def unwatched(rule: Pattern, roots: list[Node]) -> Iterator[tuple[Node, PatternMatch | None]]:
        for root in roots:
            yield root, found_at(rule, root, graph_module)

    if not own:
        yield unwatched
        return
    with SearchGuard(graph_module, whole=whole) as guard:

        def watched(rule: Pattern, roots: list[Node]) -> Iterator[tuple[Node, PatternMatch | None]]:
            if id(rule) not in own:
                return unwatched(rule, roots)
            return zip(roots, guard.found(rule, roots), strict=True)

        yield watched


def found_again(match: PatternMatch, graph_module: GraphModule) -> PatternMatch | None:
    """Returns what the rule of ``match`` finds at its root now, after the graph has changed."""
    rule, root = match.pattern, match.root
    if not searches_itself(rule):
        return found_at(rule, root, graph_module)
    near = dict.fromkeys(node for part in match.nodes for node in (part, *part.users))
    nodes = [node for node in near if not node._erased]
    with SearchGuard(graph_module, nodes, whole=True) as guard:
        return guard.found(rule, [root])[0]


def searches_itself(rule: Pattern) -> bool:
    """Tells whether code from outside the package runs while a rule looks for what fits."""
    if is_trusted(rule):
        return False
    if type(rule).match is not Pattern.match or rule.tree is None:
        return True
    for part in all_trees(rule.tree):
        where: object = getattr(part, "where", None)
        if not type(part).__module__.startswith(_OWN):
            return True
        if where is not None and not type(where).__module__.startswith(_OWN):
            return True
    return False
