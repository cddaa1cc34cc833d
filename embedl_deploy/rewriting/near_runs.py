"""Near matching of runs of nodes."""

from collections.abc import Iterator

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import is_call
from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import Wildcard
from embedl_deploy.rewriting.near_steps import Near, NearStep, exact
from embedl_deploy.rewriting.objections import Place, too_short, wrong_target
from embedl_deploy.rewriting.operands import open_inputs
from embedl_deploy.rewriting.tree import Tree
from embedl_deploy.rewriting.what_if import failed_condition


def near_run(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Wildcard``, named or not."""
    del near
    fitting = list(exact(tree, value, attempt))
    yield from fitting
    run = tree if isinstance(tree, Wildcard) else getattr(tree, "wildcard", None)
    assert isinstance(run, Wildcard), "the runs are these two"
    refused = _first_refused(run, value, attempt)
    if refused is not None:
        yield from _in_spite_of(run, value, refused, attempt)
    elif not fitting:
        short = tuple(_backwards(run, value, attempt))
        if short:
            yield from _lengthened(run, short, attempt)
        else:
            yield from _substituted(tree, value, attempt, place)


def _substituted(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    """Yields the attempt with ``value`` in the place of the last node of the run."""
    node = value if isinstance(value, Node) else place.reader
    for after in attempt.forgive(wrong_target(node, tree, place)):
        if isinstance(value, Node) and value.op.startswith("call_"):
            yield after.take(value, fits=False), open_inputs(value)[:1]
        else:
            yield after, ()


def _lengthened(run: Wildcard, short: tuple[Node, ...], attempt: Attempt) -> Iterator[NearStep]:
    """Yields a run that is too short, as if what comes before it belonged to it."""
    before = next(iter(short[-1].args), None)
    for node in short:
        attempt = attempt.take(node, fits=True)
    for after in attempt.forgive(too_short(run, short, before)):
        if isinstance(before, Node) and before.op.startswith("call_"):
            yield after.take(before, fits=False), open_inputs(before)[:1]
        else:
            yield after, ()


def _first_refused(run: Wildcard, value: Argument, attempt: Attempt) -> Node | None:
    """Returns the node at which the run ends for its condition alone."""
    for node in _backwards(run, value, attempt):
        if not run.admits(node):
            return node
    return None


def _in_spite_of(
    run: Wildcard, value: Argument, refused: Node, attempt: Attempt
) -> Iterator[NearStep]:
    """Yields the run that goes on behind ``refused``, the first node of those that are."""
    assert run.where is not None, "only a condition refuses what runs the right thing"
    for after in attempt.forgive(failed_condition(run.where, refused)):
        steps: list[NearStep] = []
        for node in _backwards(run, value, attempt):
            after = after.take(node, fits=run.admits(node))
            if refused in after.found.nodes:
                steps.append((after, open_inputs(node)[:1]))
        yield from reversed(steps)


def _backwards(run: Wildcard, value: Argument, attempt: Attempt) -> Iterator[Node]:
    """Yields the nodes that run what the run asks for, whatever its condition says of them."""
    count = 0
    while isinstance(value, Node) and value not in attempt.found.nodes and count < run.most:
        if value.op not in ("call_function", "call_module"):
            return
        if run.targets is not None and not any(is_call(value, item) for item in run.targets):
            return
        yield value
        count += 1
        value = next(iter(value.args), None)
