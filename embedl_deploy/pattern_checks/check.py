"""Checks a pattern on generated graphs and on near misses of them."""

import copy
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from random import Random
from typing import cast

from torch import nn

from embedl_deploy.errors import MissingDependencyError
from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.pattern_checks.assertions import (
    PatternFailureError,
    assert_commutes,
    assert_right,
    first_match,
)
from embedl_deploy.pattern_checks.explained import explained_mutation
from embedl_deploy.pattern_checks.growing import CannotGrowError, grow
from embedl_deploy.pattern_checks.literal_changes import changed_literals
from embedl_deploy.pattern_checks.mutations import CHANGED_LITERAL, MUTATIONS, Mutation
from embedl_deploy.pattern_checks.random_values import randomize
from embedl_deploy.pattern_checks.result import PatternCheck
from embedl_deploy.rewriting.model_check import ModelCheck
from embedl_deploy.rewriting.near_misses import near_misses
from embedl_deploy.rewriting.pattern import Pattern, instances
from embedl_deploy.tracing import trace
from embedl_deploy.tracing.quiet import quiet_torch

Example = tuple[nn.Module, tuple[object, ...]]
"""A model in which the pattern fits, and its inputs."""

_MOST_DRAWS = 60
_SHARE_COMMUTED = 0.5


def check_pattern(
    pattern: type[Pattern] | Pattern,
    *,
    others: Sequence[type[Pattern] | Pattern] = (),
    examples: Sequence[Example] = (),
    max_examples: int = 20,
) -> PatternCheck:
    """Asserts that a pattern is right wherever it applies, on graphs made from its own tree.

    In each graph it must apply or say why not, keep the outputs within its tolerance, leave
    recorded values and provenance, find nothing more to do afterwards, and give the same result
    whichever of it and ``others`` is listed first, or a refusal that says why not. Then each
    graph is changed a little (an extra reader, swapped operands, another literal, dtype, input,
    batch, mode or module), and the same must hold.

    Args:
        pattern: The rule.
        others: The patterns that it runs among, its backend's.
        examples: Models in which it fits, for rules that match by hand and for conditions that
            no made-up graph meets.
        max_examples: How many graphs to make.

    Returns:
        What was tried.

    Raises:
        ValueError: ``examples`` or ``max_examples`` is not what it must be.
        AssertionError: The pattern is wrong somewhere; the message holds the graph.
        MissingDependencyError: hypothesis is not installed.
    """
    _require(examples, max_examples)
    (rule,) = instances([pattern])
    result = PatternCheck(rule.name)
    rivals = tuple(rival for rival in instances(others) if rival.phase is rule.phase)
    with _quiet():
        for model, args in examples:
            graph_module = trace(randomize(copy.deepcopy(model)), args)
            assert isinstance(graph_module, TracedModule), "what tracing returns"
            names = _check_one(rule, rivals, graph_module, Random(0), result)
            _check_literals(rule, graph_module, names, result)
        if rule.tree is not None and type(rule).match is Pattern.match:
            _check_generated(rule, rivals, max_examples, result)
    if result.positives == 0:
        with _quiet():
            reasons = "; ".join(result.refused) or _never_met(rule)
        raise AssertionError(
            f"{rule.name} was never applied, so nothing was checked ({reasons}): "
            "give examples=[(model, args)]"
        )
    return result


def _require(examples: Sequence[object], max_examples: object) -> None:
    for example in examples:
        pair = cast("tuple[object, ...]", example) if isinstance(example, tuple) else ()
        if len(pair) != 2 or not isinstance(pair[0], nn.Module) or not isinstance(pair[1], tuple):
            raise ValueError(
                "examples is a list of models with their inputs, got "
                f"{type(cast('object', example)).__name__} in it: write [(model, (x,))]"
            )
    if not isinstance(max_examples, int) or max_examples < 1:
        raise ValueError(
            f"max_examples is how many graphs to make, at least 1, got {max_examples!r}"
        )


def _check_generated(
    rule: Pattern, rivals: tuple[Pattern, ...], max_examples: int, result: PatternCheck
) -> None:
    if find_spec("hypothesis") is None:
        raise MissingDependencyError(
            "check_pattern needs hypothesis: pip install 'embedl-deploy[dev]'"
        )
    from hypothesis import HealthCheck, given, settings
    from hypothesis import Phase as Step
    from hypothesis import strategies as st

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        # A seed has no smaller seed worth looking for.
        phases=(Step.generate,),
        database=None,
        suppress_health_check=tuple(HealthCheck),  # pyright: ignore[reportArgumentType]  # iterating over an Enum gives its members
    )
    @given(st.integers(0, 2**32 - 1))
    def run(seed: int) -> None:
        graph_module = _fitting_graph(rule, seed)
        if graph_module is not None:
            randomize(graph_module)
            _check_one(rule, rivals, graph_module, Random(seed), result)

    run()


@contextmanager
def _quiet() -> Generator[None]:
    """Keeps torch from telling about each made-up graph that it does not take."""
    with quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fitting_graph(rule: Pattern, seed: int) -> TracedModule | None:
    """Returns a graph in which the whole tree fits, None if none is found."""
    assert rule.tree is not None, "only rules with a tree come here"
    refused: TracedModule | None = None
    for attempt in range(_MOST_DRAWS):
        try:
            graph_module, _ = grow(rule.tree, Random(seed + attempt * 7919))
        except CannotGrowError:
            continue
        match = first_match(rule, graph_module)
        if match is not None and match.refusal is None:
            return graph_module
        if match is not None and refused is None:
            refused = graph_module
    return refused


def _never_met(rule: Pattern) -> str:
    """Returns what the made-up graphs lack in which the tree of a rule nearly fits."""
    said: Counter[str] = Counter()
    for seed in range(_MOST_DRAWS if rule.tree is not None else 0):
        assert rule.tree is not None, "asked for above"
        try:
            graph_module, _ = grow(rule.tree, Random(seed))
        except CannotGrowError:
            continue
        said.update(
            f"expected {miss.first.expected}, found {miss.first.found}"
            for miss in near_misses(rule, graph_module)[:1]
        )
    usual = "; ".join(text for text, _ in said.most_common(2))
    return f"no made-up graph meets its conditions: {usual}" if said else "no graph could be made"


def _check_one(
    rule: Pattern,
    rivals: tuple[Pattern, ...],
    base: TracedModule,
    random: Random,
    result: PatternCheck,
) -> list[str]:
    """Checks a rule on a graph and its near misses; returns the nodes consumed, if it applied."""
    match = first_match(rule, base)
    if match is None:
        raise PatternFailureError(f"{rule.name} does not fit in its own example", base)
    names = [node.name for node in match.nodes]
    result.saw(match.literals)
    record = assert_right(rule, base)
    if not record.applied:
        result.refused.update(site.reason or "" for site in record.refused)
        return []
    result.positives += 1
    if not rule.phase.names_places_only and random.random() < _SHARE_COMMUTED:
        assert_commutes(rule, rivals, base)
    for mutation in MUTATIONS:
        _check_mutation(rule, copy.deepcopy(base), names, mutation, random, result)
    return names


def _check_literals(
    rule: Pattern, base: TracedModule, names: list[str], result: PatternCheck
) -> None:
    """Changes each literal of an example in turn: there are no other graphs with other values."""
    first = first_match(rule, base)
    captured = {} if first is None else first.literals
    for changed in changed_literals(base, names):
        _check_near_miss(rule, changed.graph_module, CHANGED_LITERAL, (changed.node,), result)
        match = first_match(rule, changed.graph_module)
        if match is None or not match.literals:
            # A rule that matches by hand may decline before it captures anything.
            same = [name for name, value in captured.items() if value == changed.before]
            result.saw(dict.fromkeys(same, changed))


def _check_mutation(
    rule: Pattern,
    graph_module: TracedModule,
    names: list[str],
    mutation: Mutation,
    random: Random,
    result: PatternCheck,
) -> None:
    nodes = [node for node in graph_module.graph.nodes if node.name in names]
    try:
        changed = mutation.mutate(graph_module, nodes, random)
        # Some kernels do not exist for every dtype.
        ModelCheck(graph_module)
    except Exception:  # noqa: BLE001  # the change makes a program that torch does not take
        return
    if changed:
        _check_near_miss(rule, graph_module, mutation, changed, result)


def _check_near_miss(
    rule: Pattern,
    graph_module: TracedModule,
    mutation: Mutation,
    changed: tuple[str, ...],
    result: PatternCheck,
) -> None:
    match = first_match(rule, graph_module)
    result.saw({} if match is None else match.literals)
    result.mutations[mutation.name] += 1
    if assert_right(rule, graph_module, but=mutation.name).applied:
        result.applied[mutation.name] += 1
    else:
        explained = explained_mutation(rule, graph_module, mutation, changed)
        result.explanations.append(explained)
