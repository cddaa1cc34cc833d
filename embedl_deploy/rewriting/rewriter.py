# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Applies one match: builds, checks what was built, wires it in, or takes it all back."""

from dataclasses import dataclass

from torch.fx import Node

from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.provenance import (
    Rewrite,
    name_made,
    origin_of,
    record_rewrite,
    stable_name,
)
from embedl_deploy.rewriting.edit import Edit
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.match_guard import MatchGuard, erased_by_hand
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.replacement import objection_to, outside_readers
from embedl_deploy.rewriting.telling import told
from embedl_deploy.rewriting.verify import Check
from embedl_deploy.rewriting.workspace import Workspace


@dataclass(frozen=True)
class Applied:
    """A match that was rewritten."""

    made: Node
    """The node that took over the root's readers."""

    new_nodes: tuple[Node, ...]
    """Every node that the pattern inserted, in graph order."""

    erased: tuple[Node, ...]
    """The nodes that are gone now."""

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
    late = _late_inputs(match, edit.before)
    if isinstance(late, Refusal):
        return late
    edit.move_up(late)
    size = len(match.root.graph.nodes)
    guard = MatchGuard(match, "replace", always=verify is not None)
    outputs = _build(match, edit)
    refusal = guard.objection() or (outputs if isinstance(outputs, Refusal) else None)
    try:
        if refusal is None:
            assert not isinstance(outputs, Refusal)
            refusal = objection_to(match, edit, outputs, size, always=verify is not None)
            if refusal is None and verify is not None:
                refusal = verify(match, tuple(edit.nodes), outputs)
    except VerificationError:
        edit.undo()
        raise
    if refusal is not None:
        edit.undo()
        if len(match.root.graph.nodes) != size:
            raise erased_by_hand(match, "replace")
        return refusal
    assert not isinstance(outputs, Refusal)
    return _wire(workspace, match, edit, outputs)


def _build(match: PatternMatch, edit: Edit) -> dict[Node, Node] | Refusal:
    """Returns what the pattern puts in place of what, or why it could not say."""
    graph_module = edit.workspace.graph_module
    match.builder = edit
    graph_module._register_create_node_hook(edit.created.append)
    try:
        replacement = match.pattern.replace(match)
    except Exception as error:
        return Refusal(f"replace() raised {told(error)}", match.root)
    finally:
        match.builder = None
        graph_module._unregister_create_node_hook(edit.created.append)
    return {match.root: replacement} if isinstance(replacement, Node) else replacement


def _insertion_point(match: PatternMatch) -> Node:
    """Returns the earliest node that may read what the match yields."""
    readers = [reader for _, readers in outside_readers(match) for reader in readers]
    return min([*readers, match.root.next])


def _late_inputs(match: PatternMatch, before: Node) -> tuple[Node, ...] | Refusal:
    """Returns what the match reads from below ``before``, and all that this depends on there.

    With several outputs an early one may be read before a late input is computed; such inputs
    can be moved up unless they depend on the match itself.
    """
    consumed = set(match.nodes)
    pending = [read for read in match.inputs if not read < before]
    late: dict[Node, None] = {}
    while pending:
        node = pending.pop()
        if node in consumed:
            return Refusal("what it reads depends on what it yields: it cannot run as one", node)
        if node not in late:
            late[node] = None
            reads = node.all_input_nodes
            pending += [read for read in reads if read in consumed or not read < before]
    return tuple(sorted(late))


def _wire(
    workspace: Workspace, match: PatternMatch, edit: Edit, outputs: dict[Node, Node]
) -> Applied:
    pattern = match.pattern
    rewrite = Rewrite(pattern.name, match.stage, tuple(origin_of(node) for node in match.nodes))
    for position, node in enumerate(edit.nodes):
        record_rewrite(node, rewrite, match.nodes)
        name_made(node, f"{stable_name(match.root)}/{pattern.name}.{position}")
        workspace.index.add(node)
    new_nodes = set(edit.nodes)
    for old, new in outputs.items():
        if old is not new:
            old.replace_all_uses_with(new, delete_user_cb=lambda reader: reader not in new_nodes)
    erased = erase_dead(match.nodes)
    return Applied(outputs[match.root], tuple(edit.nodes), erased, edit.replaced_keys)


def erase_dead(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Erases those of ``nodes`` that nobody reads, and then their inputs that nobody reads.

    Returns:
        The erased nodes.
    """
    pending, listed = sorted(nodes), set(nodes)
    erased: list[Node] = []
    while pending:
        node = pending.pop()
        if node._erased or node.users or node.op in ("placeholder", "output"):
            continue
        reads = node.all_input_nodes
        node.graph.erase_node(node)
        erased.append(node)
        unread = [read for read in reads if not read.users and read not in listed]
        pending += [read for read in unread if not read.is_impure()]
    return tuple(erased)
