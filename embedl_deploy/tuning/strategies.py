"""Which strategy tunes which graph."""

from collections.abc import Mapping, Sequence
from typing import cast

from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.strategy import TuneStrategy

Strategies = Sequence[TuneStrategy] | Mapping[GraphSpec, TuneStrategy]
"""One per graph: in the order of the graphs, or looked up by what they are."""


def require_strategies(*given: object) -> None:
    """Checks what a user gave as strategies.

    Raises:
        ValueError: One of them is none, such as a class that was not called.
    """
    for value in given:
        if value is None or isinstance(value, TuneStrategy):
            continue
        if isinstance(value, Mapping):
            require_strategies(*cast("Mapping[object, object]", value).values())
        elif isinstance(value, (list, tuple)):
            require_strategies(*cast("Sequence[object]", value))
        else:
            raise ValueError(
                "a strategy must be a TuneStrategy, such as MinLatencyStrategy(), "
                f"got {value!r:.80}"
            )


def chosen_strategies(
    own: TuneStrategy | Strategies | None,
    given: TuneStrategy | None,
    default: TuneStrategy,
    specs: Sequence[GraphSpec],
) -> list[TuneStrategy]:
    """Returns a strategy for each graph; a module's own come before what ``tune`` was given.

    Raises:
        ValueError: The module's own strategies are not one per graph, or what is given is none.
    """
    require_strategies(given)
    if own is None or isinstance(own, TuneStrategy):
        return [own or given or default] * len(specs)
    if len(own) != len(specs):
        graphs = "; ".join(spec.describe() for spec in specs)
        raise ValueError(
            f"strategies must be one per graph: got {len(own)} for {len(specs)} graphs ({graphs})"
        )
    if not isinstance(own, Mapping):
        return list(own)
    missing = [spec.describe() for spec in specs if spec not in own]
    if missing:
        raise ValueError(f"strategies has none for the graph {missing[0]}")
    return [own[spec] for spec in specs]
