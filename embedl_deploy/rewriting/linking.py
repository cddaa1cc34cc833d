"""Why the links and the names of a tree do not fit together."""

from collections.abc import Iterator

from embedl_deploy.rewriting.compose import Chain, Maybe, OneOf, may_be_absent
from embedl_deploy.rewriting.describe import describe
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Previous, Tree
from embedl_deploy.rewriting.tree_walk import all_trees, captured_names, inner_trees


def complaints_about_links(tree: Tree, linked: bool = False) -> Iterator[str]:
    """Yields where ``...`` has no link before it, or a link reads nothing of the one before.

    Args:
        tree: The tree.
        linked: Whether it stands behind a link of a chain.
    """
    if isinstance(tree, Previous) and not linked:
        yield (
            "`...` stands for the link before this one in a Chain, and there is none. Write the "
            "Op as a later link, Chain(first, Op(op, ..., 2)), or Input() in its place"
        )
    if not isinstance(tree, Chain):
        for inner in inner_trees(tree):
            yield from complaints_about_links(inner, linked)
        return
    for position, link in enumerate(tree.links):
        yield from complaints_about_links(link, linked or position > 0)
        is_behind = any(not may_be_absent(other) for other in tree.links[:position])
        if is_behind and _reads_no_link(link):
            yield (
                f"link {position} of its Chain, {describe(link)}, lists its inputs, and none of "
                "them is `...`, the link before it. Write Op(op, ..., 2)"
            )


def complaints_about_names(tree: Tree) -> Iterator[str]:
    """Yields the names that mean both a node and a literal."""
    literals = {part.name for part in all_trees(tree) if isinstance(part, Literal)}
    for name in captured_names(tree):
        if name in literals:
            yield f"{name!r} names both a node and a literal. Give each a name of its own"


def _reads_no_link(tree: Tree) -> bool:
    if isinstance(tree, (Named, Maybe)):
        return _reads_no_link(tree.tree)
    if isinstance(tree, OneOf):
        return all(_reads_no_link(option) for option in tree.trees)
    return isinstance(tree, Op) and bool(tree.inputs) and all(map(_is_closed, tree.inputs))


def _is_closed(tree: Tree) -> bool:
    """Tells whether an input is a value or a literal of its own, not the link before."""
    if isinstance(tree, (Named, Maybe)):
        return _is_closed(tree.tree)
    if isinstance(tree, (OneOf, ListOf)):
        return all(_is_closed(option) for option in tree.trees)
    return isinstance(tree, (Input, Exactly, Literal)) and not isinstance(tree, Previous)
