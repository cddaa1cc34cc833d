"""Trees as text, the way they are written."""

from collections.abc import Iterator

from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.compose import Chain, Maybe, NamedRun, OneOf, Wildcard
from embedl_deploy.rewriting.describe import describe_target
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.tree import Exactly, Literal, Named, Op, Previous, Tree


def tree_text(tree: Tree) -> str:
    """Returns ``tree`` as it could be written, conditions by their names."""
    if isinstance(tree, Previous):
        return "..."
    if isinstance(tree, Exactly):
        return repr(tree.value)
    if isinstance(tree, ListOf):
        return f"[{', '.join(map(tree_text, tree.trees))}]"
    if isinstance(tree, NamedRun):
        return f"{tree.name}={tree_text(tree.wildcard)}"
    return f"{type(tree).__name__}({', '.join(_arguments(tree))})"


def _arguments(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Op):
        yield describe_target(tree.target)
        yield from map(tree_text, tree.inputs)
        if tree.literals:
            yield f"literals={tree.literals!r}"
    elif isinstance(tree, (Named, Literal)):
        yield repr(tree.name)
    elif isinstance(tree, Wildcard):
        yield from _run_arguments(tree.targets)
    yield from map(tree_text, _parts(tree))
    where = getattr(tree, "where", None)
    if where is not None:
        yield f"where={getattr(where, '__name__', type(where).__name__)}"


def _parts(tree: Tree) -> tuple[Tree, ...]:
    if isinstance(tree, (Named, Maybe)):
        return (tree.tree,)
    if isinstance(tree, OneOf):
        return tree.trees
    if isinstance(tree, Fork):
        return (tree.join, *tree.branches)
    return tree.links if isinstance(tree, Chain) else ()


def _run_arguments(targets: tuple[Target, ...] | None) -> Iterator[str]:
    names = [describe_target(target) for target in targets or ()]
    if names:
        yield names[0] if len(names) == 1 else f"({', '.join(names)})"
