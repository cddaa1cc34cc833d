"""What a site costs on a target in int8 and in bfloat16, predicted from its shapes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from embedl_deploy.quantization.site import Site

ShortType = Literal["int8", "bf16"]

_FREE_ACTIVATIONS = ("", "ReLU", "ReLU6", "Hardtanh")


@dataclass(frozen=True)
class KernelCost:
    """What one kind of kernel adds to the cost of its call."""

    us_per_mmac: float
    """Per million multiply-accumulates, channels counted in whole vectors."""

    us_per_megabyte: float
    """Per million bytes of input, weight, addend and output."""


@dataclass(frozen=True)
class PrecisionCosts:
    """What a graph in one precision spends its time on; a site costs the sum."""

    kernels: Mapping[str, KernelCost]
    """By ``family_of``; a family that is not named has no kernel."""

    us_per_call: float
    """Of any kernel, however small: arguments, output, looking the primitive up."""

    us_per_mega_activation: float
    """Per million output values of a fused activation that is more than a clamp."""

    us_per_loop: float
    """Of a loop between kernels: a quantizer, a cast, an activation that no kernel takes in."""

    us_per_mega_value: float
    """Per million values that such a loop goes through."""


@dataclass(frozen=True)
class TargetCosts:
    """The speed of one target, fitted to a measurement of it."""

    measured_on: str
    """Processor, versions and threads."""

    command: str
    """What measures it again."""

    int8: PrecisionCosts
    bf16: PrecisionCosts
    int8_activations: Mapping[str, tuple[str, ...]]
    """Which activations the int8 kernels take in, by ``"conv"`` or ``"linear"``; bfloat16 kernels
    take in all."""


@dataclass(frozen=True)
class Terms:
    """How much of everything that costs something a site has, in one precision."""

    family: str
    mmacs: float
    megabytes: float
    mega_activations: float
    loops: int
    mega_values: float
    """Values that loops go through."""


@dataclass(frozen=True)
class Prediction:
    """What a site is expected to cost in both precisions, and why."""

    int8_ms: float
    bf16_ms: float
    reason: str
    """What decides it: the kernel that is missing, the conversions, the share of each part."""

    @property
    def is_slower(self) -> bool:
        """Tells whether int8 is expected to be slower than bfloat16."""
        return self.int8_ms > self.bf16_ms

    @property
    def gain(self) -> float:
        """Times faster in int8 than in bfloat16, below 1 where it is slower."""
        return self.bf16_ms / self.int8_ms


def predict(site: Site, costs: TargetCosts) -> Prediction | None:
    """Returns what ``site`` will cost in each precision; None if the table lacks its kind."""
    if family_of(site) not in costs.bf16.kernels:
        return None
    int8, bf16 = parts_of_time(site, costs, "int8"), parts_of_time(site, costs, "bf16")
    return Prediction(
        sum(int8.values()) / 1e3, sum(bf16.values()) / 1e3, _reason(site, costs, int8, bf16)
    )


def family_of(site: Site) -> str:
    """Returns the kind of kernel that a site runs."""
    if site.kind != "conv":
        return "row" if site.kind == "linear" and _rows(site) == 1 else site.kind
    if site.is_depthwise:
        return "depthwise conv"
    if site.groups > 1:
        return "grouped conv"
    return "pointwise conv" if site.is_pointwise else "conv"


def terms_of(site: Site, costs: TargetCosts, short: ShortType) -> Terms:
    """Returns how much a site has of each thing that costs time."""
    family = family_of(site)
    in_codes = short == "int8" and family in costs.int8.kernels
    loops, values = _loops(site, costs, short)
    size, written = (1, 1 if site.writes_codes else 2) if in_codes else (2, 2)
    addend = {"": 0, "codes": size, "float": 2}[site.residual]
    moved = size * (site.input_size + site.weight_size) + (written + addend) * site.output_size
    takes_in = short == "bf16" or _takes_in(site, costs)
    costly = site.activation not in _FREE_ACTIVATIONS and takes_in
    return Terms(
        family,
        _padded_macs(site, in_codes) / 1e6,
        moved / 1e6,
        site.output_size / 1e6 if costly else 0.0,
        loops,
        values / 1e6,
    )


def parts_of_time(site: Site, costs: TargetCosts, short: ShortType) -> dict[str, float]:
    """Returns the microseconds of each part: call, arithmetic, memory, activation, conversion."""
    terms = terms_of(site, costs, short)
    own = costs.int8 if short == "int8" else costs.bf16
    kernel = own.kernels.get(terms.family) or costs.bf16.kernels[terms.family]
    call = own if terms.family in own.kernels else costs.bf16
    return {
        "the call": call.us_per_call,
        "arithmetic": kernel.us_per_mmac * terms.mmacs,
        "memory": kernel.us_per_megabyte * terms.megabytes,
        "the activation": own.us_per_mega_activation * terms.mega_activations,
        "conversions": own.us_per_loop * terms.loops + own.us_per_mega_value * terms.mega_values,
    }


def _loops(site: Site, costs: TargetCosts, short: ShortType) -> tuple[int, int]:
    """Returns how many loops stand around the kernel, and how many values they go through."""
    if short == "bf16":
        return (1, site.input_size) if site.reads == "float32" else (0, 0)
    count, values = (0, 0) if site.reads == "codes" else (1, site.input_size)
    if site.kind == "matmul":
        return count + 1, values + site.weight_size
    if not _takes_in(site, costs) or site.residual == "float":
        return count + 1, values + site.output_size
    return count, values


def _takes_in(site: Site, costs: TargetCosts) -> bool:
    kind = "linear" if site.kind == "linear" else "conv"
    return not site.activation or site.activation in costs.int8_activations[kind]


def _padded_macs(site: Site, in_codes: bool) -> int:
    """Returns multiply-accumulates with the channels of a group in whole vectors."""
    if site.kind == "matmul" or site.is_depthwise:
        return site.macs
    outputs, inputs = site.weight_shape[0] // site.groups, site.weight_shape[1]
    block = 4 if in_codes else 2
    padded = _up(outputs, 16) * _up(inputs, block)
    return site.macs * padded // (outputs * inputs)


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _rows(site: Site) -> int:
    return math.prod(site.input_shape[:-1])


def _reason(site: Site, costs: TargetCosts, int8: dict[str, float], bf16: dict[str, float]) -> str:
    conversions = int8["conversions"] - bf16["conversions"]
    if family_of(site) not in costs.int8.kernels:
        return (
            f"no int8 kernel for a {family_of(site)}: it runs in float, and converting its "
            f"operands costs {conversions:.0f} µs"
        )
    saved = {part: bf16[part] - int8[part] for part in int8}
    slower = sum(saved.values()) < 0
    part = (
        min(saved, key=lambda name: saved[name])
        if slower
        else max(saved, key=lambda name: saved[name])
    )
    what = "loses most" if slower else "saves most"
    return f"int8 {what} on {part}: {int8[part]:.0f} µs against {bf16[part]:.0f}"
