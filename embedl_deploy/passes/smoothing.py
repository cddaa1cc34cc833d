"""Finds how much of each outlier to move into weights, and moves it."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import CalibrationError
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.passes.processes import exchanging
from embedl_deploy.passes.skip_rules import SkipRules
from embedl_deploy.passes.smoothing_site import SmoothingSite
from embedl_deploy.quantization.config import QuantConfig, SmoothQuantConfig, TensorQuantConfig
from embedl_deploy.quantization.grid import QuantGrid
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
) -> PassRecord:
    """Smooths every site of ``matches`` where that lowers the error; changes the graph in place.

    The weights of norms and linear layers are replaced by new parameters under the same names.

    Args:
        graph_module: A graph whose module objects are its own.
        matches: Of smooth patterns.
        config: Precisions, the strength of smoothing, and what to skip.
        forward_loop: Runs the model on data, see ``calibrate_model``.

    Raises:
        CalibrationError: The loop never ran the model.
    """
    smooth = config.smooth or SmoothQuantConfig()
    began = time.perf_counter()
    skip = SkipRules(config.skip, graph_module)
    refused: list[SiteRecord] = []
    sites = _eligible(graph_module, matches, skip, refused)
    _observe(graph_module, sites, forward_loop)
    applied: list[SiteRecord] = []
    for site in sites:
        strength = _best_strength(site, config, smooth)
        if strength is None:
            refused.append(_refusal(site.match, "no strength leaves less error than none"))
        else:
            site.apply(graph_module, _factors(site, strength))
            applied.append(site_record(site.match, made=f"strength {strength}"))
    notes = tuple(skip.unmet(("smooth",)))
    return PassRecord("smooth", tuple(applied), tuple(refused), time.perf_counter() - began, notes)


def _eligible(
    graph_module: GraphModule,
    matches: Sequence[PatternMatch],
    skip: SkipRules,
    refused: list[SiteRecord],
) -> list[SmoothingSite]:
    owners = Counter(
        id(parameter) for _, parameter in graph_module.named_parameters(remove_duplicate=False)
    )
    sites: list[SmoothingSite] = []
    for match in matches:
        reason = _decline(match, skip)
        site = SmoothingSite.of(match)
        reason = reason or _tied(site, owners)
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


def _tied(site: SmoothingSite, owners: Counter[int]) -> str | None:
    for module in (site.producer, *site.layers):
        for name, parameter in module.named_parameters(recurse=False):
            if owners[id(parameter)] > 1:
                return f"{name} of {type(module).__name__} is tied to another parameter"
    return None


def _observe(model: nn.Module, sites: list[SmoothingSite], forward_loop: ForwardLoop) -> None:
    if not sites:
        return
    with (
        exchanging(lambda: [(site.peaks, site.rows) for site in sites]) as seen,
        ExitStack() as stack,
    ):
        for site in sites:
            stack.enter_context(site.watching())
        run_forward_loop(model, forward_loop)
    if len(seen) > 1:
        for site, by_process in zip(sites, zip(*seen, strict=True), strict=True):
            site.take(by_process)
    if all(site.rows is None for site in sites):
        raise CalibrationError(
            "forward_loop never ran the model it was given: call the model on calibration inputs, "
            "smoothing saw no data"
        )


def _best_strength(
    site: SmoothingSite, config: QuantConfig, smooth: SmoothQuantConfig
) -> float | None:
    """Returns the strength with the least error, ``None`` where none is worth it."""
    if not smooth.search or site.rows is None:
        return None if site.rows is None else smooth.strength
    grid = QuantGrid.of(config.activation or TensorQuantConfig(symmetric=False))
    weights = site.weights()
    precision = config.weight or TensorQuantConfig(per_channel=True)
    # While candidates are compared a searched weight range costs more than it tells.
    plain = replace(precision, calibration_method=CalibrationMethod.MINMAX)
    quantizers = [WeightFakeQuantize(plain, weight.shape) for weight in weights]
    candidates = [_factors(site, strength) for strength in _STRENGTHS]
    with torch.no_grad():
        without, *errors = smoothed_errors(
            site.rows, weights, [torch.ones_like(candidates[0]), *candidates], grid, quantizers
        )
    least = min(errors)
    return _STRENGTHS[errors.index(least)] if least < _WORTH_IT * without else None


def _factors(site: SmoothingSite, strength: float) -> Tensor:
    assert site.peaks is not None
    weight_peaks = torch.stack([weight.abs().amax(0) for weight in site.weights()])
    factors = smoothing_factors(site.peaks, weight_peaks.amax(0), strength)
    # A common factor changes nothing; without it the activation keeps its magnitude.
    return factors / factors.log().mean().exp()
