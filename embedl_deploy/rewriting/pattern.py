"""The contract of a rewrite rule."""

import re
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import ClassVar, cast

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.contract import (
    require_graft,
    require_several,
    require_tolerance,
    require_tuples,
)
from embedl_deploy.rewriting.definition import require_known_names, require_one_way
from embedl_deploy.rewriting.found import Found
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.match_guard import MatchGuard, is_trusted
from embedl_deploy.rewriting.matchable import require_captured, require_matchable
from embedl_deploy.rewriting.phase import Phase
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.telling import told
from embedl_deploy.rewriting.tree import Tree

_TUPLES = ("roots", "outputs", "qdq_points")

_MOST_WAYS = 64
"""How many ways to fit one tree at one root are tried before giving up."""

Replacement = Node | dict[Node, Node]
"""The node that takes over the root's readers, or one node for each consumed node with readers."""


class Pattern(ABC):
    """A rule: what to look for, when to decline, and what to put there.

    A subclass sets ``phase`` and ``tree`` and defines ``replace`` (or ``graft``). Everything else
    is the engine's: finding, naming, wiring, metadata, records.
    """

    phase: ClassVar[Phase]
    """The stage that runs the rule."""

    tree: ClassVar[Tree | None] = None
    """What to look for. None for a rule that overrides ``match``."""

    roots: ClassVar[Sequence[Target]] = ()
    """For a rule that overrides ``match``: what the last node may run; () for any call."""

    qdq_points: ClassVar[tuple[str, ...]] = ()
    """Captures whose data inputs are quantized, for rules of the quantization stage."""

    outputs: ClassVar[tuple[str, ...]] = ()
    """Captures beside the root that may be read from outside; ``replace`` returns a dict then."""

    graft: ClassVar[Callable[[], nn.Module] | None] = None
    """Makes the module that replaces the match, for rules without ``replace``."""

    tolerance: ClassVar[float] = 1e-4
    """How far the rewrite may move an output, relative to the output's norm in float32."""

    name: ClassVar[str] = "pattern"
    """The class name in kebab case; reports, plans and messages show it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = kebab(cls.__name__)

    def anchors(self) -> Sequence[Target] | None:
        """Returns what the root of a match may run, None if anything."""
        if self.tree is not None and type(self).match is Pattern.match:
            return self.tree.anchors()
        return self.roots or None

    def match(self, root: Node, graph_module: GraphModule) -> "PatternMatch | Refusal | None":
        """Returns the best fit whose last node is ``root``, None where the tree does not fit.

        Where the whole tree fits but the graph around it or ``check`` says no, the match carries
        the refusal. A refusal alone is recorded at the root.
        """
        if self.tree is None:
            return None
        refused: PatternMatch | None = None
        for candidate in islice(self._ways(self.tree, root, graph_module), _MOST_WAYS):
            candidate.refusal = self.decline(candidate)
            if candidate.refusal is None:
                return candidate
            refused = refused or candidate
        return refused

    def check(self, match: PatternMatch) -> Refusal | None:
        """Returns why the rule does not apply to a match of its tree, None if it does."""
        del match
        return None

    def replace(self, match: PatternMatch) -> Replacement:
        """Builds what takes the place of the match; see ``PatternMatch`` for how."""
        graft = cast("Callable[[], nn.Module] | None", type(self).graft)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # no method
        if graft is None and self.phase.names_places_only:
            return match.root
        if graft is None:
            raise PatternError(f"{self.name} says nothing to put there: define replace() or graft")
        try:
            module = graft()
        except Exception as error:
            raise PatternError(f"graft of {self.name} raised {told(error)}") from error
        if not isinstance(cast("object", module), nn.Module):
            raise PatternError(
                f"graft of {self.name} must return a module, got {module!r}: write "
                "graft = nn.ReLU, for one, or a lambda that calls the class"
            )
        return match.call_module(module, *match.inputs)

    def decline(self, match: PatternMatch) -> Refusal | None:
        """Returns why the match is left alone: readers outside it, or what ``check`` says."""
        refusal = also_used(match)
        if refusal is not None:
            return refusal
        if type(self).check is Pattern.check:
            return None
        guard = MatchGuard(match, "check")
        try:
            answer = cast("object", self.check(match))
        finally:
            changed = guard.objection()
        if changed is not None:
            return changed
        if answer is None or isinstance(answer, Refusal):
            return answer
        raise PatternError(
            f"check() of {self.name} must return a Refusal or None, got {answer!r} at "
            f"%{match.root.name}"
        )

    def _ways(self, tree: Tree, root: Node, graph_module: GraphModule) -> Iterator[PatternMatch]:
        for found, _ in tree.match(root, Found()):
            yield PatternMatch(
                self, graph_module, root, found.nodes, found.captures, found.literals
            )


def also_used(match: PatternMatch) -> Refusal | None:
    """Returns a refusal if a node inside the match is read from outside it."""
    consumed = set(match.nodes)
    outputs = [match.root, *(match[name] for name in match.pattern.outputs if name in match)]
    for node in match.nodes:
        if node in outputs or consumed.issuperset(node.users):
            continue
        outside = next(user for user in node.users if user not in consumed)
        lost = [name for name in match.pattern.outputs if name not in match]
        known = ", ".join(match.captures) or "nothing"
        named = f"; outputs names {lost[0]!r}, and captured here: {known}" if lost else ""
        return Refusal(
            f"%{node.name} ({node.op} {node.target}) is also used by %{outside.name}{named}", node
        )
    return None


def kebab(name: str) -> str:
    """Returns ``FoldBatchNormIntoConv`` as ``fold-batch-norm-into-conv``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def instances(patterns: Sequence["type[Pattern] | Pattern"]) -> tuple[Pattern, ...]:
    """Returns the patterns as objects, whether classes or objects were given.

    Raises:
        PatternError: One of them is no pattern.
    """
    require_several(patterns)
    made: list[Pattern] = []
    for pattern in cast("Sequence[object]", patterns):
        rule = pattern
        if isinstance(pattern, type) and issubclass(pattern, Pattern):
            rule = pattern()
        if not isinstance(rule, Pattern):
            given = cast("object", pattern)
            shown = getattr(given, "__name__", repr(given))
            raise PatternError(
                f"a pattern is a subclass of Pattern or an object of one, got {shown}: a module "
                "to put in belongs into the replace() or graft of a pattern"
            )
        require_phase(rule)
        _require_matchable(rule)
        made.append(rule)
    return tuple(made)


def require_phase(rule: Pattern) -> None:
    """Asserts that a rule says in which stage it runs.

    Raises:
        PatternError: It has no phase, or something that is none.
    """
    phase: object = getattr(rule, "phase", None)
    if isinstance(phase, Phase):
        return
    known = ", ".join(f"Phase.{item.name}" for item in Phase)
    if phase is None:
        raise PatternError(f"{rule.name} has no phase: set `phase = Phase.FUSION`; known: {known}")
    raise PatternError(
        f"the phase of {rule.name} is {phase!r} of type {type(phase).__name__}, and must be one of "
        f"{known}"
    )


def _require_matchable(rule: Pattern) -> None:
    require_tuples(rule.name, {name: getattr(rule, name) for name in _TUPLES})
    require_graft(rule.name, getattr(type(rule), "graft", None))
    require_tolerance(rule.name, rule.tolerance)
    if not is_trusted(rule):
        require_known_names(rule.name, type(rule), Pattern)
        require_one_way(rule.name, type(rule), Pattern)
    if type(rule).match is not Pattern.match:
        return
    if rule.tree is None:
        raise PatternError(f"{rule.name} has no tree: set `tree` or override match()")
    if not isinstance(cast("object", rule.tree), Tree):
        raise PatternError(
            f"the tree of {rule.name} is {rule.tree!r}: write Chain(...) or Op(...) around it"
        )
    require_matchable(rule.name, rule.tree)
    require_captured(rule.name, "outputs", rule.outputs, rule.tree)
    require_captured(rule.name, "qdq_points", rule.qdq_points, rule.tree)
