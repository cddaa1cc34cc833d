"""Fits the table of costs to measured sites: least squares of relative errors, no cost below 0.

    python -m benchmarks.site_fit [--input FILE]

Prints the table, to be copied into ``embedl_deploy/backends/x86_costs.py``. Only rows of the
models in ``benchmarks.site_rows.FITTED`` are read; the others judge it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console
from rich.pretty import Pretty
from scipy.optimize import nnls  # pyright: ignore[reportUnknownVariableType]  # untyped

from benchmarks.site_rows import (
    RESULTS,
    Row,
    fitted_rows,
    is_steady,
    read,
    rows_in,
    site_in,
    time_us,
)
from embedl_deploy.backends.x86_costs import X86_VNNI_COSTS
from embedl_deploy.quantization.costs import (
    KernelCost,
    PrecisionCosts,
    ShortType,
    TargetCosts,
    Terms,
    terms_of,
)


def main() -> None:
    """Prints the fitted table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, default=RESULTS)
    rows = fitted_rows(rows_in(read(parser.parse_args().input)))
    Console().print(Pretty(fitted(rows)))


def fitted(rows: Sequence[Row]) -> TargetCosts:
    """Returns the costs that fit the rows best, in both precisions."""
    usable = [row for row in rows if is_steady(row)]
    return replace(X86_VNNI_COSTS, int8=_fit(usable, "int8"), bf16=_fit(usable, "bf16"))


def _fit(rows: Sequence[Row], short: ShortType) -> PrecisionCosts:
    """Returns the costs of kernels and of what stands between them in one precision.

    Each row is one equation, Σ cost · amount = time, divided by the time: relative errors count.
    """
    terms = [terms_of(site_in(row), X86_VNNI_COSTS, short) for row in rows]
    times = np.array([time_us(row, short) for row in rows])
    families = sorted({term.family for term in terms})
    amounts = np.array([_amounts(term, families) for term in terms])
    found = cast("list[float]", nnls(amounts / times[:, None], np.ones(len(rows)))[0].tolist())
    shared, own = [round(cost, 2) for cost in found[:4]], [round(cost, 3) for cost in found[4:]]
    kernels = {
        family: KernelCost(*own[2 * index : 2 * index + 2]) for index, family in enumerate(families)
    }
    if short == "int8":
        kernels.pop("matmul", None)  # none ran: a float kernel did, between conversions
    return PrecisionCosts(kernels, *shared)


def _amounts(term: Terms, families: Sequence[str]) -> list[float]:
    own = [0.0] * (2 * len(families))
    place = 2 * families.index(term.family)
    own[place : place + 2] = term.mmacs, term.megabytes
    return [1.0, term.mega_activations, term.loops, term.mega_values, *own]


if __name__ == "__main__":
    main()
