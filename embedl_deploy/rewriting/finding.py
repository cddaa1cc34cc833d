"""What a rule finds at a node, whatever its own code does."""

from torch.fx import GraphModule, Node

from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.telling import told


def found_at(rule: Pattern, root: Node, graph_module: GraphModule) -> PatternMatch | None:
    """Returns what a rule finds at ``root``, with the refusal where it declines or fails."""
    try:
        found = rule.match(root, graph_module)
        if isinstance(found, PatternMatch):
            if type(rule).match is not Pattern.match:
                found.refusal = found.refusal or rule.decline(found)
            return found
    except Exception as error:  # noqa: BLE001  # a rule may fail in any way; the others go on
        found = Refusal(f"match() or check() raised {told(error)}", root)
    if found is None:
        return None
    if not isinstance(found, Refusal):  # pyright: ignore[reportUnnecessaryIsInstance]  # the user's
        found = Refusal(f"match() must return a match, a refusal or None, got {found!r}", root)
    return declined(rule, root, graph_module, found)


def declined(
    rule: Pattern, root: Node, graph_module: GraphModule, refusal: Refusal
) -> PatternMatch:
    """Returns a match of ``root`` alone that carries why it is left alone."""
    match = PatternMatch(rule, graph_module, root, (root,), {})
    match.refusal = refusal
    return match
