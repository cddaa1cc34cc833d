"""Measures what calling compiled code from Python adds to a call, in both precisions.

    OMP_NUM_THREADS=1 python -m benchmarks.site_packages

Builds a few small sites as packages ahead of time, as the engine does, and as the benchmark of
sites does, and prints both; the median differences are ``benchmarks.site_rows.OVERHEAD_US``.
"""

import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from benchmarks.site_modules import FloatSite, IntegerSite, inputs_of
from benchmarks.site_timing import ReadsOne, compiled_call
from embedl_deploy.cli.console import quiet_libraries
from embedl_deploy.engines.inductor_build import compile_package, load_package
from embedl_deploy.engines.inductor_programs import inductor_program
from embedl_deploy.quantization.site import Site
from embedl_deploy.tuning.measure import measure_in_rotation, timed

_ONES = ((1, 1), (0, 0), (1, 1))
_SAME = ((1, 1), (1, 1), (1, 1))
SITES = (
    Site("conv", (1, 120, 1, 1), (32, 120, 1, 1), (1, 32, 1, 1), *_ONES, activation="ReLU"),
    Site("conv", (1, 200, 14, 14), (200, 1, 3, 3), (1, 200, 14, 14), *_SAME, 200, "Hardswish"),
    Site("conv", (1, 40, 28, 28), (240, 40, 1, 1), (1, 240, 28, 28), *_ONES, 1, "Hardswish"),
    Site("linear", (1, 128, 384), (384, 384), (1, 128, 384)),
    Site("conv", (1, 16, 112, 112), (64, 16, 1, 1), (1, 64, 112, 112), *_ONES, 1, "ReLU"),
)


def main() -> None:
    """Prints the four times of each site, and what Python adds."""
    quiet_libraries()
    torch.set_num_threads(1)
    added: dict[str, list[float]] = {"int8": [], "bf16": []}
    for site in SITES:
        for short, module in (("int8", IntegerSite(site)), ("bf16", FloatSite(site))):
            packaged, called = _times(site, module.eval(), integer=short == "int8")
            added[short].append(called - packaged)
            shown = f"{site.kind} {site.input_shape}: {short} {packaged:.1f} µs in a package"
            Console().print(f"{shown}, {called:.1f} called from Python")
    medians = {short: round(statistics.median(found), 1) for short, found in added.items()}
    Console().print(f"Python adds {medians} µs")


def _times(site: Site, module: nn.Module, *, integer: bool) -> tuple[float, float]:
    """Returns the microseconds of a call in a package and in compiled code called from Python."""
    (x,) = inputs_of(site, integer=integer)
    program = inductor_program(ReadsOne(module).eval(), (x,), None, None)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "site.pt2"
        compile_package(program, (x,), {}, path, {})
        package, called = load_package(path), compiled_call(module, [x], {})
        runners = {"package": timed(lambda: package([x])), "call": timed(called)}
        timings = measure_in_rotation(runners, budget_s=3.0)
    return 1e3 * timings["package"].p10_ms, 1e3 * timings["call"].p10_ms


if __name__ == "__main__":
    main()
