"""Applies one match: builds, checks what was built, wires it in, or takes it all back."""

from dataclasses import dataclass

from torch.fx import Node

from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.nodes import input_nodes, value_of
from embedl_deploy.graph.provenance import Rewrite, origin_of, record_rewrite
from embedl_deploy.graph.values import same_value, value_text
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.verify import Check
from embedl_deploy.rewriting.workspace import Edit, Workspace


@dataclass(frozen=True)
class Applied:
    """A match that was rewritten."""

    made: Node
    """The node that took over the root's readers."""

    new_nodes: tuple[Node, ...]
    """Every node that the pattern inserted, in graph order."""

    registered: tuple[str, ...]
    """Paths of the modules and tensors that it registered."""

    replaced_keys: dict[str, tuple[str, ...]]
    """Keys of the state dict that new parameters take the place of."""


def apply_match(
    workspace: Workspace, match: PatternMatch, verify: Check | None = None
) -> Applied | Refusal:
    """Rewrites one match.

    Args:
        workspace: The graph it stands in.
        match: What to rewrite.
        verify: Asked before the replacement is wired in.

    Returns:
        What was made, or why nothing was: then the graph is as it was before.
    """
    edit = Edit(workspace, match, _insertion_point(match))
    match.builder = edit
    try:
        replacement = match.pattern.replace(match)
        outputs = {match.root: replacement} if isinstance(replacement, Node) else replacement
        refusal = _objection(match, edit, outputs)
        if refusal is None and verify is not None:
            refusal = verify(match, tuple(edit.nodes), outputs)
    except VerificationError:
        edit.undo()
        raise
    except Exception as error:
        refusal = Refusal(f"replace() raised {type(error).__name__}: {error}", match.root)
    finally:
        match.builder = None
    if refusal is not None:
        edit.undo()
        return refusal
    return _wire(workspace, match, edit, outputs)


def _insertion_point(match: PatternMatch) -> Node:
    """Returns the earliest node that may read what the match yields."""
    consumed = set(match.nodes)
    readers = [
        reader for node in match.nodes for reader in node.users if reader not in consumed
    ]
    return min([*readers, match.root.next])


def _objection(match: PatternMatch, edit: Edit, outputs: dict[Node, Node]) -> Refusal | None:
    """Returns what is wrong with a replacement, None if nothing is."""
    if not isinstance(outputs, dict) or match.root not in outputs:
        return Refusal("replace() must return the node that takes over the root", match.root)
    refusal = _misplaced(edit, outputs) or _unmapped(match, outputs)
    if refusal is not None:
        return refusal
    try:
        edit.infer_values()
    except Exception as error:
        return Refusal(
            f"the replacement does not run on the recorded shapes: "
            f"{type(error).__name__}: {error}",
            match.root,
        )
    for old, new in outputs.items():
        before, after = value_of(old), value_of(new)
        if before is not None and not same_value(before, after):
            return Refusal(
                f"the replacement yields {value_text(after)} where %{old.name} "
                f"yields {value_text(before)}",
                old,
            )
    return None


def _misplaced(edit: Edit, outputs: dict[Node, Node]) -> Refusal | None:
    graph = edit.workspace.graph_module.graph
    for new in outputs.values():
        if not isinstance(new, Node) or new._erased or new.graph is not graph:
            return Refusal("the replacement is no node of this graph", None)
    for node in edit.nodes:
        for read in (*input_nodes(node.args), *input_nodes(node.kwargs)):
            if read._erased or read.graph is not graph:
                return Refusal(f"the replacement reads %{read.name}, which is gone", None)
            if not read < node:
                return Refusal(f"the replacement reads %{read.name}, which comes later", read)
    return None


def _unmapped(match: PatternMatch, outputs: dict[Node, Node]) -> Refusal | None:
    consumed = set(match.nodes)
    for node in match.nodes:
        outside = [reader for reader in node.users if reader not in consumed]
        if outside and node not in outputs and not _kept(node, outputs):
            return Refusal(
                f"%{node.name} is read by %{outside[0].name}, and replace() returns nothing "
                "that takes its place",
                node,
            )
    return None


def _kept(node: Node, outputs: dict[Node, Node]) -> bool:
    """Tells whether the replacement still computes ``node`` itself."""
    pending, seen = list(outputs.values()), set[Node]()
    while pending:
        reached = pending.pop()
        if reached is node:
            return True
        if reached in seen or reached < node:
            continue
        seen.add(reached)
        pending += reached.all_input_nodes
    return False


def _wire(
    workspace: Workspace, match: PatternMatch, edit: Edit, outputs: dict[Node, Node]
) -> Applied:
    pattern = match.pattern
    rewrite = Rewrite(pattern.name, match.stage, tuple(origin_of(node) for node in match.nodes))
    for node in edit.nodes:
        record_rewrite(node, rewrite, match.nodes)
        workspace.index.add(node)
    new_nodes = set(edit.nodes)
    for old, new in outputs.items():
        if old is not new:
            old.replace_all_uses_with(new, delete_user_cb=lambda reader: reader not in new_nodes)
    erase_dead(match.nodes)
    return Applied(
        outputs[match.root], tuple(edit.nodes), tuple(edit.registered), edit.replaced_keys
    )


def erase_dead(nodes: tuple[Node, ...]) -> None:
    """Erases those of ``nodes`` that nobody reads, and then their inputs that nobody reads."""
    pending = sorted(nodes)
    while pending:
        node = pending.pop()
        if node._erased or node.users or node.op in ("placeholder", "output"):
            continue
        reads = node.all_input_nodes
        node.graph.erase_node(node)
        pending += [read for read in reads if not read.users and not read.is_impure()]
