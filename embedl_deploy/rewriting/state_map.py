"""Turns weights of the model that was traced into weights of what it was rewritten to."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import PlanError
from embedl_deploy.graph.record import LoadedState, StateLoader, record_of
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.records import PassRecord, SiteRecord, site_record
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.stages import Stage

_Key = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class StateMap:
    """Computes what rewrites put in place of a model's weights, by doing them again.

    So every pattern that folds, splits or merges parameters is covered, whatever it computes.
    """

    source: GraphModule
    """The graph before the rewrites; it takes the ``state_dict`` of the model."""

    stages: tuple[Stage, ...]

    passes: tuple[PassRecord, ...]
    """What each stage did."""

    def keys(self) -> Iterable[str]:
        earlier = record_of(self.source).loader
        return self.source.state_dict().keys() if earlier is None else earlier.keys()

    def __call__(self, state: Mapping[str, Tensor]) -> LoadedState:
        """Returns the rewritten graph's weights for ``state`` of the model.

        Raises:
            RuntimeError: A tensor has another shape than the model's.
            PlanError: With these weights a rewrite no longer fits.
        """
        graph, keys = copy.deepcopy(self.source), dict.fromkeys(self.keys())
        known = {key: value for key, value in state.items() if key in keys}
        missing = tuple(cast("list[str]", graph.load_state_dict(known, strict=False).missing_keys))
        for stage, record in zip(self.stages, self.passes, strict=True):
            _repeat(graph, stage, record)
        # What was not given and is not made from what was given stays as it is.
        made = graph.state_dict()
        return LoadedState({key: made[key] for key in made if key not in missing}, missing)


def state_map(
    source: GraphModule,
    rewritten: nn.Module,
    stages: tuple[Stage, ...],
    passes: tuple[PassRecord, ...],
) -> StateLoader | None:
    """Returns the map from the weights of the model to those of ``rewritten``.

    Where no rewrite made or dropped a parameter it is that of ``source``, the graph before them:
    None if that has the weights of the model.
    """
    before, after = source.state_dict(keep_vars=True), rewritten.state_dict(keep_vars=True)
    if before.keys() == after.keys() and all(after[key] is before[key] for key in before):
        return record_of(source).loader
    return StateMap(source, stages, passes)


def _repeat(graph: GraphModule, stage: Stage, record: PassRecord) -> None:
    wanted = {_key(site): site for site in record.applied}

    def gate(match: PatternMatch) -> Refusal | None:
        if _key(site_record(match)) in wanted:
            return None
        return Refusal("it was not applied to the weights before", match.root)

    again = apply_patterns(
        graph, stage.patterns, stage.name, until_fixpoint=stage.until_fixpoint, gate=gate
    )
    reached = {_key(site) for site in again.applied}
    for key, site in wanted.items():
        if key not in reached:
            reasons = [refused.reason for refused in again.refused if _key(refused) == key]
            raise PlanError(
                f"these weights do not fit the rewritten model: {site.pattern} at %{site.site} "
                f"({site.source or 'no source line recorded'}) no longer applies"
                f"{f', {reasons[0]}' if reasons else ''}; load them into the original model and "
                "transform it again"
            )


def _key(site: SiteRecord) -> _Key:
    return (site.pattern, site.site, site.nodes)
