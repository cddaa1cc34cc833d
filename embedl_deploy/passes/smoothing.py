"""Finds how much of each outlier to move into weights, and moves it."""

import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import CalibrationError
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.parameter_names import one_parameter_by_all_names, reading_places
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.passes.processes import exchanging
from embedl_deploy.passes.skip_rules import SkipRules
from embedl_deploy.passes.smoothing_site import SmoothedTensor, SmoothingSite
from embedl_deploy.quantization.config import QuantConfig, SmoothQuantConfig, TensorQuantConfig
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.placement import Placement
from embedl_deploy.quantization.precision import CalibrationMethod
from embedl_deploy.quantization.smoothing import smoothed_errors, smoothing_factors
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord, PatternMatch, Refusal, SiteRecord
from embedl_deploy.rewriting.records import site_record

_STRENGTHS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
_WORTH_IT = 0.95
"""Smoothing is applied where it leaves at most this share of the error without it."""


def smooth_graph(
    graph_module: GraphModule,
    matches: Sequence[PatternMatch],
    config: QuantConfig,
    forward_loop: ForwardLoop,
    placement: Placement,
) -> PassRecord:
    """Smooths every site of ``matches`` where that lowers the error; changes the graph in place.

    Args:
        graph_module: A graph whose module objects are its own.
        matches: Of smooth patterns.
        config: Precisions, the strength of smoothing, and what to skip.
        forward_loop: Runs the model on data, see ``calibrate_model``.
        placement: How the target takes quantized tensors.

    Raises:
        CalibrationError: The loop never ran the model.
    """
    smoothing = Smoothing.of(graph_module, matches, config, placement)
    if smoothing.sites:
        with smoothing.watching(graph_module):
            run_forward_loop(graph_module, forward_loop)
    return smoothing.apply()


@dataclass
class Smoothing:
    """The sites of one graph that may be smoothed, and what became of them."""

    graph_module: GraphModule
    config: QuantConfig
    placement: Placement
    skip: SkipRules
    began: float
    sites: list[SmoothingSite] = field(default_factory=list[SmoothingSite])
    refused: list[SiteRecord] = field(default_factory=list[SiteRecord])
    smoothed: dict[str, SmoothedTensor] = field(default_factory=dict[str, SmoothedTensor])
    """By the name of the node that now gives the smoothed tensor."""

    @classmethod
    def of(
        cls,
        graph_module: GraphModule,
        matches: Sequence[PatternMatch],
        config: QuantConfig,
        placement: Placement,
    ) -> Self:
        """Returns the sites of ``matches`` in a graph whose module objects are its own."""
        skip = SkipRules(config.skip, graph_module)
        found = cls(graph_module, config, placement, skip, time.perf_counter())
        found.sites = _eligible(graph_module, matches, skip, found.refused)
        return found

    @contextmanager
    def watching(self, running: GraphModule) -> Generator[None]:
        """Collects what the sites need while ``running`` runs: the graph, or a copy of it.

        Raises:
            CalibrationError: It did not run.
        """
        producers = {node.name: module_of(node) for node in running.graph.nodes}
        with (
            exchanging(lambda: [site.seen() for site in self.sites]) as seen,
            ExitStack() as stack,
        ):
            for site in self.sites:
                stack.enter_context(site.watching(producers[site.value.name]))
            yield
        if len(seen) > 1:
            for site, by_process in zip(self.sites, zip(*seen, strict=True), strict=True):
                site.take(by_process)
        if self.sites and all(site.rows is None for site in self.sites):
            raise CalibrationError(
                "forward_loop never ran the model it was given: call the model on calibration "
                "inputs, smoothing saw no data"
            )

    def apply(self) -> PassRecord:
        """Smooths every site where that lowers the error; changes the graph in place.

        The weights of norms and linear layers are replaced by new parameters under the same names.
        """
        with one_parameter_by_all_names(self.graph_module):
            applied = self._applied(self.config.smooth or SmoothQuantConfig())
        seconds = time.perf_counter() - self.began
        notes = tuple(self.skip.unmet(("smooth",)))
        return PassRecord("smooth", applied, tuple(self.refused), seconds, notes)

    def _applied(self, smooth: SmoothQuantConfig) -> tuple[SiteRecord, ...]:
        applied: list[SiteRecord] = []
        for site in self.sites:
            strength = self._best_strength(site, smooth)
            if strength is None:
                reason = "no strength leaves less error than none"
                self.refused.append(_refusal(site.match, reason))
                continue
            factors = _factors(site, strength)
            node = site.apply(self.graph_module, factors)
            self.smoothed[node.name] = SmoothedTensor(site, factors)
            applied.append(site_record(site.match, made=f"strength {strength}"))
        return tuple(applied)

    def _best_strength(self, site: SmoothingSite, smooth: SmoothQuantConfig) -> float | None:
        """Returns the strength with the least error, ``None`` where none is worth it."""
        if not smooth.search or site.rows is None:
            return None if site.rows is None else smooth.strength
        weights = site.weights()
        size = None if self.config.weight is None else self.config.weight.group_size
        if size is not None and (weights[0].shape[1] % size or site.has_convolutions):
            return None  # these layers stay in float
        activation = self.placement.accepted_activation(self.config.activation)
        grid = dynamic = None
        if activation is not None:
            grid = QuantGrid.of(activation, self.placement.activation_dtype)
            dynamic = activation.dynamic
        quantizers = [
            rounding_like(weight, self.config.weight, outputs)
            for weight, outputs in zip(weights, site.outputs(), strict=True)
        ]
        candidates = [_factors(site, strength) for strength in _STRENGTHS]
        ones = torch.ones_like(candidates[0])
        with torch.no_grad():
            without, *errors = smoothed_errors(
                site.rows, weights, [ones, *candidates], grid, quantizers, dynamic
            )
        least = min(errors)
        return _STRENGTHS[errors.index(least)] if least < _WORTH_IT * without else None


def _eligible(
    graph_module: GraphModule,
    matches: Sequence[PatternMatch],
    skip: SkipRules,
    refused: list[SiteRecord],
) -> list[SmoothingSite]:
    places = reading_places(graph_module)
    sites: list[SmoothingSite] = []
    for match in matches:
        reason = _decline(match, skip)
        site = SmoothingSite.of(match)
        reason = reason or _tied(site, places)
        if reason is None:
            sites.append(site)
        else:
            refused.append(_refusal(match, reason))
    return sites


def _refusal(match: PatternMatch, reason: str) -> SiteRecord:
    return site_record(match, refusal=Refusal(reason, match.root))


def _decline(match: PatternMatch, skip: SkipRules) -> str | None:
    if not match.apply:
        return "vetoed in the plan"
    if match.refusal is not None:
        return str(match.refusal)
    nodes = (match.root, *match.root.users)
    reasons = (skip.reason("smooth", node) for node in nodes)
    return next((reason for reason in reasons if reason is not None), None)


def _tied(site: SmoothingSite, places: Counter[int]) -> str | None:
    for module in (site.producer, *site.layers):
        for name, parameter in module.named_parameters(recurse=False):
            if places[id(parameter)] > 1:
                return f"{name} of {type(module).__name__} is tied to another parameter"
    return None


def rounding_like(
    weight: Tensor, precision: TensorQuantConfig | None, outputs: int | None = None
) -> nn.Module:
    """Returns what rounds ``weight``, on its device; an identity if it stays in float.

    Args:
        weight: Shape (out, in).
        precision: How it is rounded.
        outputs: How many outputs have a scale of their own, if fewer than there are rows.
    """
    if precision is None:
        return nn.Identity()
    # While candidates are compared a searched weight range costs more than it tells.
    plain = replace(precision, calibration_method=CalibrationMethod.MINMAX)
    rows = weight.shape[0] if outputs is None else outputs
    shape = torch.Size((rows, weight.numel() // rows))
    return _ByOutput(WeightFakeQuantize(plain, shape).to(weight.device), shape)


class _ByOutput(nn.Module):
    """Rounds a weight with a scale for each output, which may have several rows."""

    def __init__(self, rounding: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.rounding = rounding
        self.shape = shape

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = self.rounding(weight.reshape(self.shape))
        return rounded.reshape(weight.shape)


def _factors(site: SmoothingSite, strength: float) -> Tensor:
    weight_peaks = torch.stack([weight.abs().amax(0) for weight in site.weights()])
    factors = smoothing_factors(site.peaks, weight_peaks.amax(0), strength)
    # A common factor changes nothing; without it the activation keeps its magnitude.
    return factors / factors.log().mean().exp()
