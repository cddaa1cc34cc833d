"""What a tree is made of."""

from collections.abc import Iterator

from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.compose import Chain, Maybe, OneOf, Wildcard
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.tree import Literal, Named, Op, Tree


def inner_trees(tree: Tree) -> tuple[Tree, ...]:
    """Returns the trees that ``tree`` is made of."""
    if isinstance(tree, Op):
        return tree.inputs
    if isinstance(tree, (Named, Maybe)):
        return (tree.tree,)
    if isinstance(tree, (OneOf, ListOf)):
        return tree.trees
    if isinstance(tree, Chain):
        return tree.links
    if isinstance(tree, Fork):
        return (tree.join, *tree.branches)
    wildcard = getattr(tree, "wildcard", None)
    return (wildcard,) if isinstance(wildcard, Tree) else ()


def all_trees(tree: Tree) -> Iterator[Tree]:
    """Yields ``tree`` and everything that it is made of."""
    yield tree
    for inner in inner_trees(tree):
        yield from all_trees(inner)


def targets_in(tree: Tree) -> Iterator[Target]:
    """Yields everything that some node of ``tree`` may run."""
    for part in all_trees(tree):
        if isinstance(part, Op):
            yield part.target
        elif isinstance(part, Wildcard):
            yield from part.targets or ()


def captured_names(tree: Tree) -> tuple[str, ...]:
    """Returns the names under which ``tree`` captures nodes, literals left out."""
    names = (part.name_of() for part in all_trees(tree) if not isinstance(part, Literal))
    return tuple(dict.fromkeys(name for name in names if name is not None))


def optional_link(tree: Tree, name: str) -> str | None:
    """Returns the name of the optional part that captures ``name``, None where none does.

    That is the link of a ``Maybe``, or ``name`` itself where it is one of several alternatives.
    """
    for part in all_trees(tree):
        if isinstance(part, (Maybe, OneOf)) and name in _names(part):
            link = part.tree.name_of() if isinstance(part, Maybe) else None
            return link or (name if name in captured_names(tree) else "")
    return None


def _names(tree: Tree) -> set[str | None]:
    return {part.name if isinstance(part, Literal) else part.name_of() for part in all_trees(tree)}
