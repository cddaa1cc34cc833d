# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""What may be wrong with what a pattern puts in the place of a match."""

from collections.abc import Iterator
from typing import cast

from torch.fx import Node

from embedl_deploy.graph.nodes import value_of
from embedl_deploy.graph.values import same_value, value_text
from embedl_deploy.rewriting.edit import Edit
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.match_guard import is_trusted
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.telling import told


def objection_to(
    match: PatternMatch,
    edit: Edit,
    outputs: dict[Node, Node],
    size: int,
    *,
    always: bool = False,
) -> Refusal | None:
    """Returns what is wrong with a replacement, None if nothing is.

    One node that a rule of the package itself puts in the place of the root takes over the root's
    recorded value; any other value is computed and compared.

    Args:
        match: What is to be replaced.
        edit: What the pattern built.
        outputs: What ``replace`` returned: what takes the place of what.
        size: How many nodes the graph had before.
        always: Whether to compute the values of the package's own rules too.
    """
    refusal = _not_returned(match, outputs)
    if refusal is not None:
        return refusal
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
    if not always and _takes_over_value(match, edit, outputs):
        return None
    try:
        edit.infer_values()
    except Exception as error:  # noqa: BLE001  # a replacement may fail in any way
        return Refusal(
            f"the replacement does not run on the recorded shapes: {told(error)}{_grafted(match)}",
            match.root,
        )
    return _changed_value(outputs)


def _grafted(match: PatternMatch) -> str:
    if type(match.pattern).replace is not Pattern.replace:
        return ""
    read = ", ".join(f"%{node.name}" for node in match.inputs)
    return f"; graft's module is called with the match's inputs, here {read}"


def _takes_over_value(match: PatternMatch, edit: Edit, outputs: dict[Node, Node]) -> bool:
    """Gives a trusted rule's one node the value of the root; tells whether it is one."""
    value = value_of(match.root)
    if value is None or len(edit.nodes) != 1 or not is_trusted(match.pattern):
        return False
    (made,) = edit.nodes
    if outputs != {match.root: made}:
        return False
    made.meta["val"] = value
    return True


def _not_returned(match: PatternMatch, outputs: object) -> Refusal | None:
    """Returns why what ``replace`` returned says nothing about the root, None if it does."""
    root = match.root
    if not isinstance(outputs, dict):
        return Refusal(
            "replace() must return the node that takes over the root, got "
            f"{type(outputs).__name__}: return match.call_module(...), or a dict from each "
            "replaced node to what takes its place",
            root,
        )
    replaced = cast("dict[object, object]", outputs)
    if replaced and all(isinstance(key, str) for key in replaced):
        listed = ", ".join(f"match[{name!r}]: …" for name in replaced)
        return Refusal(
            f"replace() must return a dict from nodes, got one from names: write {{{listed}}}",
            root,
        )
    if root not in replaced:
        return Refusal(
            f"replace() must return a dict that holds the root, and %{root.name} is not in it: "
            "add match.root and what takes its place",
            root,
        )
    is_unchanged = all(old is new for old, new in replaced.items())
    if is_unchanged and not match.pattern.phase.names_places_only:
        return Refusal(
            "replace() returned the root itself, so nothing would change: return what takes its "
            "place, or decline in check()",
            root,
        )
    return None


def _changed_value(outputs: dict[Node, Node]) -> Refusal | None:
    for old, new in outputs.items():
        before, after = value_of(old), value_of(new)
        if before is not None and not same_value(before, after):
            return Refusal(
                f"the replacement yields {value_text(after)} where %{old.name} "
                f"yields {value_text(before)}: build one with the same shape, dtype and number of "
                "outputs, or decline in check()",
                old,
            )
    return None


def _misplaced(edit: Edit, outputs: dict[Node, Node]) -> Refusal | None:
    graph = edit.workspace.graph_module.graph
    for old, new in outputs.items():
        refusal = _unfit(edit, old, new)
        if refusal is not None:
            return refusal
    for node in edit.nodes:
        for read in node.all_input_nodes:
            if read._erased or read.graph is not graph:
                return Refusal(
                    f"the replacement reads %{read.name}, which is gone or of another graph: "
                    "build from match.inputs and match's captures, and keep no nodes between "
                    "matches",
                    None,
                )
            if not read < node:
                return Refusal(f"the replacement reads %{read.name}, which comes later", read)
    return None


def _unfit(edit: Edit, old: Node, new: object) -> Refusal | None:
    """Returns why ``new`` cannot take over the readers of ``old``, None if it can."""
    if old not in edit.match.nodes:
        consumed = ", ".join(f"%{node.name}" for node in edit.match.nodes)
        return Refusal(
            f"replace() may only replace nodes that the match consumes, here {consumed}, and "
            f"{_shown(old)} is none of them: leave it out of the dict, or let the tree reach it",
            old if isinstance(cast("object", old), Node) else None,
        )
    if not isinstance(new, Node) or new._erased or new.graph is not old.graph:
        return Refusal(
            "the replacement is no node of this graph: return what match.call_module, "
            "match.call_function or match.get_attr gave, or a node that the match reads",
            None,
        )
    if new not in edit.nodes and not new < edit.before:
        return Refusal(f"the replacement is %{new.name}, which comes later", new)
    if edit.workspace.is_body and new.op == "placeholder" and _is_returned(old):
        return Refusal("the body of a condition or loop may not return its input as it is", old)
    return None


def _shown(node: object) -> str:
    return f"%{node.name}" if isinstance(node, Node) else repr(node)


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
