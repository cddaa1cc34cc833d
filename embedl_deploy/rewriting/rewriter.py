# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Applies one match: builds, checks what was built, wires it in, or takes it all back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch.fx import Node

from embedl_deploy.errors import PatternError, VerificationError
from embedl_deploy.graph.nodes import value_of
from embedl_deploy.graph.provenance import (
    Rewrite,
    name_made,
    origin_of,
    record_rewrite,
    stable_name,
)
from embedl_deploy.graph.values import same_value, value_text
from embedl_deploy.rewriting.edit import Edit
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.tensor_guard import TensorGuard
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
    guard = TensorGuard(match, keeps=verify is not None)
    try:
        outputs = _build(match, edit)
        if isinstance(outputs, Refusal):
            refusal = guard.objection() or outputs
        else:
            refusal = guard.objection() or _objection(match, edit, outputs, size)
            if refusal is None and verify is not None:
                refusal = verify(match, tuple(edit.nodes), outputs)
    except (VerificationError, PatternError):
        edit.undo()
        raise
    if refusal is not None:
        edit.undo()
        if len(match.root.graph.nodes) != size:
            raise _erased_by_hand(match)
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
        return Refusal(f"replace() raised {type(error).__name__}: {error}", match.root)
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


def _objection(
    match: PatternMatch, edit: Edit, outputs: dict[Node, Node], size: int
) -> Refusal | None:
    """Returns what is wrong with a replacement, None if nothing is."""
    if not isinstance(cast("object", outputs), dict) or match.root not in outputs:
        return Refusal(
            "replace() must return the node that takes over the root, got "
            + type(outputs).__name__,
            match.root,
        )
    made, grown = len(edit.nodes), len(match.root.graph.nodes) - size
    if len(edit.created) != made or grown != made:
        return Refusal(
            "replace() changed the graph itself: build with match.call_module, "
            "match.call_function and match.get_attr only",
            match.root,
        )
    refusal = _misplaced(edit, outputs) or _unmapped(match, outputs)
    if refusal is not None:
        return refusal
    try:
        edit.infer_values()
    except Exception as error:
        return Refusal(
            f"the replacement does not run on the recorded shapes: {type(error).__name__}: {error}",
            match.root,
        )
    return _changed_value(outputs)


def _changed_value(outputs: dict[Node, Node]) -> Refusal | None:
    for old, new in outputs.items():
        before, after = value_of(old), value_of(new)
        if before is not None and not same_value(before, after):
            return Refusal(
                f"the replacement yields {value_text(after)} where %{old.name} "
                f"yields {value_text(before)}",
                old,
            )
    return None


def _erased_by_hand(match: PatternMatch) -> PatternError:
    return PatternError(
        f"{match.pattern.name} erased nodes itself in replace() at %{match.root.name}, past the "
        "engine, which cannot take that back: build with match.call_module, match.call_function "
        "and match.get_attr, and leave erasing to the engine"
    )


def _misplaced(edit: Edit, outputs: dict[Node, Node]) -> Refusal | None:
    graph = edit.workspace.graph_module.graph
    for old, new in outputs.items():
        refusal = _unfit(edit, old, new)
        if refusal is not None:
            return refusal
    for node in edit.nodes:
        for read in node.all_input_nodes:
            if read._erased or read.graph is not graph:
                return Refusal(f"the replacement reads %{read.name}, which is gone", None)
            if not read < node:
                return Refusal(f"the replacement reads %{read.name}, which comes later", read)
    return None


def _unfit(edit: Edit, old: Node, new: object) -> Refusal | None:
    """Returns why ``new`` cannot take over the readers of ``old``, None if it can."""
    if old not in edit.match.nodes:
        return Refusal("replace() may only replace nodes that the match consumes", old)
    if not isinstance(new, Node) or new._erased or new.graph is not old.graph:
        return Refusal("the replacement is no node of this graph", None)
    if new not in edit.nodes and not new < edit.before:
        return Refusal(f"the replacement is %{new.name}, which comes later", new)
    if edit.workspace.is_body and new.op == "placeholder" and _is_returned(old):
        return Refusal("the body of a condition or loop may not return its input as it is", old)
    return None


def _is_returned(node: Node) -> bool:
    return any(reader.op == "output" for reader in node.users)


def _unmapped(match: PatternMatch, outputs: dict[Node, Node]) -> Refusal | None:
    for node, readers in outside_readers(match):
        if node not in outputs and not _kept(node, outputs):
            return Refusal(
                f"%{node.name} is read by %{readers[0].name}, and replace() returns nothing "
                "that takes its place",
                node,
            )
    return None


def outside_readers(match: PatternMatch) -> Iterator[tuple[Node, list[Node]]]:
    """Yields each consumed node that is read outside the match, and who reads it there."""
    consumed = set(match.nodes)
    for node in match.nodes:
        readers = [reader for reader in node.users if reader not in consumed]
        if readers:
            yield node, readers


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
    pending = sorted(nodes)
    erased: list[Node] = []
    while pending:
        node = pending.pop()
        if node._erased or node.users or node.op in ("placeholder", "output"):
            continue
        reads = node.all_input_nodes
        node.graph.erase_node(node)
        erased.append(node)
        pending += [read for read in reads if not read.users and not read.is_impure()]
    return tuple(erased)
