# pyright: reportPrivateUsage=false
# torch keeps schemas private; there is no other door.
"""Why a tree cannot match anything, in the words of its author."""

import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache

from torch import nn
from torch._ops import OpOverload

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.compose import Chain, Maybe, OneOf, Wildcard, may_be_absent
from embedl_deploy.rewriting.describe import describe, describe_target
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.linking import complaints_about_links, complaints_about_names
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.targets import better_spelling
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Previous, Tree
from embedl_deploy.rewriting.tree_walk import all_trees, captured_names


def require_matchable(rule: str, tree: Tree) -> None:
    """Asserts that ``tree`` can match something.

    Raises:
        PatternError: It cannot; the message names the rule, the place and the cure.
    """
    reason = _first_complaint(tree)
    if reason is not None:
        raise PatternError(f"the tree of {rule} cannot match anything: {reason}")


def require_captured(rule: str, attribute: str, names: Sequence[str], tree: Tree) -> None:
    """Asserts that ``tree`` captures what ``names``, like "conv" or "conv.weight", begin with.

    Raises:
        PatternError: One is captured nowhere.
    """
    if not names:
        return
    if isinstance(names, str):
        raise PatternError(f"{attribute} of {rule} is a tuple of names, got {names!r}")
    known = captured_names(tree)
    lost = [name for name in names if re.split(r"[.\[]", name)[0] not in known]
    if lost:
        raise PatternError(
            f"{attribute} of {rule} names {', '.join(map(repr, lost))}, which its tree does not "
            f"capture; it captures {', '.join(map(repr, known)) or 'nothing'}: name a link or "
            f"write Named({lost[0]!r}, …) in the tree"
        )


@lru_cache(maxsize=1024)  # a tree never changes, and rules are looked at once per stage
def _first_complaint(tree: Tree) -> str | None:
    return next(_complaints(tree), None)


def _complaints(tree: Tree) -> Iterator[str]:
    """Yields what keeps ``tree``, or a part of it that must be there, from matching."""
    yield from _complaints_about_root(tree)
    yield from complaints_about_links(tree)
    yield from complaints_about_names(tree)
    for part in all_trees(tree):
        if isinstance(part, Op):
            yield from _complaints_about_call(part)
        elif isinstance(part, Wildcard):
            yield from _complaints_about_targets(part.targets or ())
        elif isinstance(part, Chain):
            yield from _complaints_about_chain(part)
        elif isinstance(part, Fork):
            yield from _complaints_about_fork(part)


def _complaints_about_root(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Maybe):
        inner = describe(tree)
        yield f"it is a Maybe alone, which only a Chain can go without: write {inner} itself"
    if _is_literal(tree):
        yield (
            "its last node is a literal, and matching starts at a call. Put the literal among the "
            "inputs of an Op"
        )
    if _is_value(tree):
        yield (
            "its last node is a value that is read, and there must be a call to replace. End it "
            "with a module class or an ATen op"
        )


def _complaints_about_chain(chain: Chain) -> Iterator[str]:
    if all(may_be_absent(link) for link in chain.links):
        yield (
            "every link of its Chain is optional: it would match nothing at all. Make one link "
            "mandatory"
        )
    for position, link in enumerate(chain.links):
        if _is_literal(link):
            yield (
                f"link {position} of its Chain is {describe(link)}, and links are calls. Put the "
                "literal among the inputs of an Op: Op(op, ..., 0.5)"
                if not isinstance(link, ListOf)
                else f"link {position} of its Chain is a list, and links are calls. List the "
                "links themselves, and lists among the inputs of an Op: Op(op, [..., Input()])"
            )
        if position > 0 and _is_value(link):
            yield (
                f"link {position} of its Chain is Input(), which reads a value and ends the "
                "match: only the first link may be one"
            )


def _complaints_about_fork(fork: Fork) -> Iterator[str]:
    for branch in fork.branches:
        if _is_literal(branch):
            yield (
                f"a branch of its Fork is {describe(branch)}, and branches are computed values. "
                "Write Op(op, ..., literal) instead"
            )
        if any(isinstance(part, Previous) for part in all_trees(branch)):
            yield (
                "a branch of its Fork holds `...`. The operand that has no branch is the link "
                "before it: leave `...` out, or write Op(op, ..., Input())"
            )
    join = fork.join.tree if isinstance(fork.join, Named) else fork.join
    if isinstance(join, Op):
        yield from _complaints_about_join(fork, join)


def _complaints_about_join(fork: Fork, join: Op) -> Iterator[str]:
    most = _most_tensors(join.target)
    if most is None:
        return
    if len(fork.branches) > most:
        yield (
            f"its Fork has {len(fork.branches)} branches, and {describe(fork)} joins {most} "
            "tensors: take branches out, or nest a second Fork"
        )
    elif max(fork.counts) < _least_tensors(join.target):
        behind = " and the link before it" if fork.is_behind_link else ""
        yield (
            f"its Fork has {len(fork.branches)} branches{behind}, and {describe(fork)} joins "
            f"{_least_tensors(join.target)} tensors: list the others, as Input()"
        )


def _complaints_about_call(op: Op) -> Iterator[str]:
    yield from _complaints_about_targets((op.target,))
    known = _argument_names(op.target) if op.literals or op.inputs else None
    if known is None:
        return
    listed = f"it has {', '.join(known) or 'none'}"
    name = describe_target(op.target)
    for literal in op.literals:
        if literal not in known:
            yield f"{name} has no argument {literal!r}; {listed}{_cure_of_name(op, literal, known)}"
    if isinstance(op.target, OpOverload):
        yield from _complaints_about_keywords(op, known)
    if len(op.inputs) > len(known) and isinstance(op.target, OpOverload):
        lists = [item for item in op.target._schema.arguments if "List[" in str(item.type)]
        cure = f". {lists[0].name!r} is a list: write [x, y]" if lists else ""
        yield f"{name} takes {len(known)} arguments, {len(op.inputs)} are listed; {listed}{cure}"


def _cure_of_name(op: Op, name: str, known: Sequence[str]) -> str:
    if isinstance(op.target, type):
        return ". A module's options are no arguments: test them with where="
    nearest = get_close_matches(name, known, n=1)
    return f". Write {nearest[0]!r}" if nearest else ""


def _complaints_about_keywords(op: Op, known: Sequence[str]) -> Iterator[str]:
    """Keywords of an ``Op`` name captures by position; some take them for the schema's names."""
    first = len(op.inputs) - len(op.keywords)
    for position, name in enumerate(op.keywords, start=first):
        if name in known and position < len(known) and known[position] != name:
            yield (
                f"{name}= of {describe_target(op.target)} stands at the place of "
                f"{known[position]!r}: inputs are listed by position, keywords only name captures. "
                f"List what comes before it, or write literals={{{name!r}: …}}"
            )


def _complaints_about_targets(targets: Sequence[Target]) -> Iterator[str]:
    for target in targets:
        better = better_spelling(target)
        if better is not None:
            yield (
                f"no node runs {_function_name(target)}: traced graphs hold ATen ops and layers of "
                f"torch.nn. Write {better}"
            )


def _function_name(target: Target) -> str:
    name = str(getattr(target, "__name__", target))
    owner = "torch.Tensor" if type(target).__name__ == "method_descriptor" else target.__module__
    return f"{owner}.{name}"


def _argument_names(target: Target) -> tuple[str, ...] | None:
    """Returns how the arguments of a call are called, None where that is open."""
    if isinstance(target, OpOverload):
        return tuple(parameter.name for parameter in target._schema.arguments)
    if not isinstance(target, type) or not issubclass(target, nn.Module):
        return None
    parameters = inspect.signature(target.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters if parameter.name != "self")


def _most_tensors(target: Target) -> int | None:
    """Returns how many tensors a call of an ATen op reads, None where that is open."""
    if not isinstance(target, OpOverload):
        return None
    kinds = [str(parameter.type) for parameter in target._schema.arguments]
    is_open = any("List[Tensor" in kind for kind in kinds)
    return None if is_open else sum("Tensor" in kind for kind in kinds)


def _least_tensors(target: Target) -> int:
    """Returns how many tensors a call of an ATen op reads at least."""
    if not isinstance(target, OpOverload):
        return 0
    schema = target._schema.arguments
    return sum(str(item.type) == "Tensor" and not item.has_default_value() for item in schema)


def _is_literal(tree: Tree) -> bool:
    if isinstance(tree, (Named, Maybe)):
        return _is_literal(tree.tree)
    if isinstance(tree, OneOf):
        return all(_is_literal(option) for option in tree.trees)
    return isinstance(tree, (Exactly, Literal, ListOf))


def _is_value(tree: Tree) -> bool:
    if isinstance(tree, (Named, Maybe)):
        return _is_value(tree.tree)
    if isinstance(tree, Chain):
        return _is_value(tree.links[-1])
    return isinstance(tree, Input)
