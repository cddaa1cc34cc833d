"""Draws what a search for precisions had to choose from: saving against error."""

import math
from collections.abc import Callable, Sequence
from html import escape

from embedl_deploy.quantization.search_result import FrontierPoint, PrecisionSearchResult

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 20, 50, 60
_LINE, _TRIED, _CHOSEN = "#1f77b4", "#ff7f0e", "#2ca02c"

Scale = Callable[[float], float]


def frontier_svg(result: PrecisionSearchResult) -> str:
    """Returns the frontier as SVG: what is saved to the right, the predicted error upwards.

    Errors are on a logarithmic axis; choices without error stand on it. Rings are choices that
    were checked, the filled dot is the one chosen; tooltips hold the figures.
    """
    points = result.frontier
    unit = "bytes of parameters" if result.budget.kind == "max_bytes" else "ms"
    across = _linear([point.saving for point in points])
    up, decades = _logarithmic([point.error for point in points])
    path = " ".join(
        f"{'L' if at else 'M'}{across(point.saving):.1f} {up(point.error):.1f}"
        for at, point in enumerate(points)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        *_axes([point.saving for point in points], across, up, decades),
        f'<path d="{path}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>',
        *(_dot(point, across, up, result) for point in points),
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(_title(result))}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">'
        f"saved by quantizing, {unit}</text>",
        f'<text transform="translate(18 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">predicted squared error of the output, relative</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _title(result: PrecisionSearchResult) -> str:
    return (
        f"{result.budget}: {len(result.quantized)} of {len(result.groups)} groups quantized, "
        f"drop {result.drop:.3g}"
    )


def _linear(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    span = high - low or 1.0
    return lambda value: _LEFT + (value - low) / span * (_WIDTH - _LEFT - _RIGHT)


def _logarithmic(values: Sequence[float]) -> tuple[Scale, list[int]]:
    """Returns the scale upwards, and the powers of ten to write at it; 0 lies on the axis."""
    logs = [math.log10(value) for value in values if value > 0.0] or [0.0]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    step = max(1, (high - low) // 8)
    floor, height = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP

    def up(value: float) -> float:
        if value <= 0.0:
            return floor
        return floor - (math.log10(value) - low) / (high - low) * height

    return up, list(range(low, high + 1, step))


def _axes(savings: Sequence[float], across: Scale, up: Scale, decades: Sequence[int]) -> list[str]:
    floor = _HEIGHT - _BOTTOM
    low, high = min(savings), max(savings)
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    lines = [
        f'<path d="M{_LEFT} {_TOP}V{floor}H{_WIDTH - _RIGHT}" fill="none" stroke="#555"/>',
    ]
    for decade in decades:
        y = up(10.0**decade)
        lines.append(
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>'
        )
    lines += [
        f'<text x="{across(tick):.1f}" y="{floor + 18}" text-anchor="middle">{tick:.3g}</text>'
        for tick in dict.fromkeys(ticks)
    ]
    return lines


def _dot(point: FrontierPoint, across: Scale, up: Scale, result: PrecisionSearchResult) -> str:
    is_chosen = point.trial == result.chosen
    colour = _CHOSEN if is_chosen else _LINE if point.trial is None else _TRIED
    radius = 6 if is_chosen else 2 if point.trial is None else 4
    fill = "#fff" if point.trial is not None and not is_chosen else colour
    metric = "" if point.trial is None else f", metric {point.trial.metric:.6g}"
    text = f"{point.quantized} quantized, saves {point.saving:.4g}, error {point.error:.2g}{metric}"
    return (
        f"<g><title>{escape(text)}</title>"
        f'<circle cx="{across(point.saving):.1f}" cy="{up(point.error):.1f}" r="{radius}" '
        f'fill="{fill}" stroke="{colour}" stroke-width="2"/></g>'
    )
