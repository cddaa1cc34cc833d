"""Finds how much of each outlier to move into weights, and moves it."""

import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import CalibrationError
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.kinds import LinearLayer, RowNorm
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.passes.skip_rules import SkipRules
from embedl_deploy.patterns.smooth import linear_that_reads
from embedl_deploy.quantization.config import QuantConfig, SmoothQuantConfig, TensorQuantConfig
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.smoothing import smoothed_error, smoothing_factors
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord, PatternMatch, Refusal, SiteRecord
from embedl_deploy.rewriting.records import site_record

_STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8)
_SAMPLED_ROWS = 512
_WORTH_IT = 0.95
"""Smoothing is applied where it leaves at most this share of the error without it."""


@dataclass
class _Site:
    """A norm, the linear layers that read it, and what was seen between them."""

    match: PatternMatch
    norm: RowNorm
    layers: tuple[LinearLayer, ...]
    peaks: Tensor | None = None
    rows: Tensor | None = None

    def observe(self, output: Tensor) -> None:
        """Takes in one output of the norm."""
        rows = output.detach().reshape(-1, output.shape[-1])
        peaks = rows.abs().amax(0)
        self.peaks = peaks if self.peaks is None else torch.maximum(self.peaks, peaks)
        seen = rows if self.rows is None else torch.cat([self.rows, rows])
        self.rows = seen[:_SAMPLED_ROWS].clone()

    def weights(self) -> list[Tensor]:
        """Returns the weights of the layers, shape (out, in) each."""
        return [
            layer.weight.t() if isinstance(layer, TransposedLinear) else layer.weight
            for layer in self.layers
        ]


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
    assert config.smooth is not None
    began = time.perf_counter()
    skip = SkipRules(config.skip, graph_module)
    applied: list[SiteRecord] = []
    refused: list[SiteRecord] = []
    sites: list[_Site] = []
    owners = Counter(
        id(parameter) for _, parameter in graph_module.named_parameters(remove_duplicate=False)
    )
    for match in matches:
        reason = _decline(match, skip) or _tied(match, owners)
        if reason is None:
            sites.append(_site(match))
        else:
            refused.append(site_record(match, refusal=Refusal(reason, match.root)))
    _observe(graph_module, sites, forward_loop)
    for site in sites:
        strength = _best_strength(site, config, config.smooth)
        if strength is None:
            reason = "no strength leaves less error than none"
            refused.append(site_record(site.match, refusal=Refusal(reason, site.match.root)))
        else:
            _fold(site, _factors(site, strength))
            applied.append(site_record(site.match, made=f"strength {strength}"))
    notes = tuple(skip.unmet(("smooth",)))
    return PassRecord("smooth", tuple(applied), tuple(refused), time.perf_counter() - began, notes)


def _decline(match: PatternMatch, skip: SkipRules) -> str | None:
    if not match.apply:
        return "vetoed in the plan"
    if match.refusal is not None:
        return str(match.refusal)
    nodes = (match.root, *match.root.users)
    reasons = (skip.reason("smooth", node) for node in nodes)
    return next((reason for reason in reasons if reason is not None), None)


def _tied(match: PatternMatch, owners: Counter[int]) -> str | None:
    site = _site(match)
    for module in (site.norm, *site.layers):
        for name, parameter in module.named_parameters(recurse=False):
            if owners[id(parameter)] > 1:
                return f"{name} of {type(module).__name__} is tied to another parameter"
    return None


def _site(match: PatternMatch) -> _Site:
    norm = module_of(match.root)
    assert isinstance(norm, (nn.LayerNorm, nn.RMSNorm)), "smooth patterns match norms"
    layers = (linear_that_reads(reader, match.root) for reader in match.root.users)
    return _Site(match, norm, tuple(layer for layer in layers if layer is not None))


def _observe(model: nn.Module, sites: list[_Site], forward_loop: ForwardLoop) -> None:
    if not sites:
        return
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(_watching(site))
        run_forward_loop(model, forward_loop)
    if all(site.rows is None for site in sites):
        raise CalibrationError(
            "forward_loop never ran the model it was given: call the model on calibration inputs, "
            "smoothing saw no data"
        )


@contextmanager
def _watching(site: _Site) -> Generator[None]:
    def observe(module: nn.Module, args: object, output: Tensor) -> None:
        del module, args
        site.observe(output)

    handle = site.norm.register_forward_hook(observe)
    try:
        yield
    finally:
        handle.remove()


def _best_strength(site: _Site, config: QuantConfig, smooth: SmoothQuantConfig) -> float | None:
    """Returns the strength with the least error, ``None`` where none is worth it."""
    if not smooth.search or site.rows is None:
        return None if site.rows is None else smooth.strength
    grid = QuantGrid.of(config.activation or TensorQuantConfig(symmetric=False))
    weights = [weight.detach() for weight in site.weights()]
    precision = config.weight or TensorQuantConfig(per_channel=True)
    quantizers = [WeightFakeQuantize(precision, weight.shape) for weight in weights]
    errors = {
        strength: smoothed_error(site.rows, weights, _factors(site, strength), grid, quantizers)
        for strength in _STRENGTHS
    }
    ones = torch.ones_like(_factors(site, 0.5))
    without = smoothed_error(site.rows, weights, ones, grid, quantizers)
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < _WORTH_IT * without else None


def _factors(site: _Site, strength: float) -> Tensor:
    assert site.peaks is not None
    weight_peaks = torch.stack([weight.detach().abs().amax(0) for weight in site.weights()])
    factors = smoothing_factors(site.peaks, weight_peaks.amax(0), strength)
    # A common factor changes nothing; without it the activation keeps its magnitude.
    return factors / factors.log().mean().exp()


def _fold(site: _Site, factors: Tensor) -> None:
    """Divides the norm by the factors and multiplies the weights by them."""
    for name in ("weight", "bias"):
        old = getattr(site.norm, name, None)
        if old is not None:
            _replace(site.norm, name, old, old / factors)
    for layer in site.layers:
        per_input = factors[:, None] if isinstance(layer, TransposedLinear) else factors
        _replace(layer, "weight", layer.weight, layer.weight * per_input)


def _replace(module: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    setattr(module, name, nn.Parameter(new.detach().to(old.dtype), old.requires_grad))
