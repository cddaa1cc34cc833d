"""Whether an explanation names what a mutation changed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule

from embedl_deploy.pattern_checks.mutations import Mutation
from embedl_deploy.rewriting.difference import Difference, NearMiss
from embedl_deploy.rewriting.explain import explain_graph
from embedl_deploy.rewriting.pattern import Pattern


@dataclass(frozen=True)
class ExplainedMutation:
    """What ``explain`` says first about a near miss, beside what was changed."""

    mutation: str
    """The kind of change."""

    changed: tuple[str, ...]
    """Names of the nodes that were changed."""

    names_node: bool
    """Whether the first near miss names one of these nodes."""

    names_property: bool
    """Whether a difference at such a node is of the kind that the mutation makes."""

    unprompted: bool
    """Whether it was found without naming a node to ``explain``."""

    said: str
    """The first near miss, as text."""

    @property
    def is_explained(self) -> bool:
        """Whether node and property are named."""
        return self.names_node and self.names_property

    def __str__(self) -> str:
        verdict = "explained" if self.is_explained else "not explained"
        return f"{self.mutation} of {', '.join(self.changed)}, {verdict}: {self.said}"


def explained_mutation(
    rule: Pattern, graph_module: GraphModule, mutation: Mutation, changed: Sequence[str]
) -> ExplainedMutation:
    """Returns what ``explain`` says of a graph in which ``changed`` keeps ``rule`` from firing.

    Where nothing in the whole graph comes near, it is asked about the changed node.
    """
    first = explain_graph(graph_module, rule).first
    unprompted = first is not None
    if first is None:
        first = explain_graph(graph_module, rule, changed[0]).first
    at_node = [] if first is None else _at(first, changed)
    return ExplainedMutation(
        mutation.name,
        tuple(changed),
        bool(at_node),
        any(_is_of_kind(difference, mutation) for difference in at_node),
        unprompted,
        "nothing" if first is None else str(first),
    )


def _at(miss: NearMiss, changed: Sequence[str]) -> list[Difference]:
    """Returns the differences that name one of the nodes ``changed``.

    A literal or a link is named at the node that reads it or stands before it.
    """
    return [
        difference
        for difference in miss.differences
        if difference.node in changed
        or any(re.search(rf"%{name}\b", difference.found) for name in changed)
        or any(re.search(rf"%{name}\b", difference.expected) for name in changed)
    ]


def _is_of_kind(difference: Difference, mutation: Mutation) -> bool:
    if difference.aspect in mutation.aspects:
        return True
    said = f"{difference.expected} {difference.found}"
    return re.search(mutation.words, said, re.IGNORECASE) is not None
