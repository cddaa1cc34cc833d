from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest
import torch

from benchmarks.site_fit import fitted
from benchmarks.site_judgement import judged, judged_by, wrong_in
from benchmarks.site_modules import SCALE, ZERO_POINT, FloatSite, IntegerSite, inputs_of
from benchmarks.site_rows import (
    FITTED,
    JUDGED,
    OVERHEAD_US,
    RESULTS,
    Row,
    fitted_rows,
    is_steady,
    judged_rows,
    read,
    rows_in,
    site_in,
    time_us,
    write,
)
from benchmarks.sites import in_batches
from embedl_deploy.backends.x86_costs import X86_VNNI_COSTS
from embedl_deploy.quantization.costs import predict
from embedl_deploy.quantization.site import Site
from embedl_deploy.tuning.machine import JsonValue

CONV = Site(
    "conv",
    (2, 8, 9, 9),
    (6, 8, 3, 3),
    (2, 6, 5, 5),
    (2, 2),
    (1, 1),
    (1, 1),
    activation="ReLU",
    residual="codes",
    reads="codes",
)
LINEAR = Site("linear", (1, 5, 16), (12, 16), (1, 5, 12), writes_codes=True)
PRODUCT = Site("matmul", (2, 3, 4), (2, 4, 5), (2, 3, 5), reads="bfloat16")


def row_of(site: Site, int8_us: float, bf16_us: float, model: int = 0, judges: bool = True) -> Row:
    source, batch = (JUDGED if judges else FITTED)[model]
    int8_us, bf16_us = int8_us + OVERHEAD_US["int8"], bf16_us + OVERHEAD_US["bf16"]
    times = {"int8_ms": int8_us, "int8_p10_ms": int8_us, "bf16_ms": bf16_us, "bf16_p10_ms": bf16_us}
    row: Row = {"model": source, "batch": batch, "site": cast("JsonValue", asdict(site))}
    return row | {name: time / 1e3 for name, time in times.items()}


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    document = read(path)
    rows_in(document).append(row_of(CONV, 1, 2))
    rows_in(document).append(row_of(PRODUCT, 3, 4))

    write(path, document)

    found = rows_in(read(path))
    assert [site_in(row) for row in found] == [CONV, PRODUCT]
    assert [time_us(row, "int8") for row in found] == pytest.approx([1.0, 3.0])
    assert [time_us(row, "bf16") for row in found] == pytest.approx([2.0, 4.0])


def test_what_judges_is_never_fitted() -> None:
    failed: Row = {"model": "x", "batch": 1, "error": "no kernel"}
    rows = [row_of(CONV, 1, 2, judges=False), row_of(LINEAR, 1, 2), failed]

    assert not set(FITTED) & set(JUDGED)
    assert (fitted_rows(rows), judged_rows(rows)) == ([rows[0]], [rows[1]])


def test_a_row_is_steady_where_both_medians_are_near_the_tenth_percentile() -> None:
    row = row_of(CONV, 10, 20)

    assert is_steady(row)
    assert not is_steady(row | {"bf16_ms": 0.05})
    assert not is_steady(row | {"int8_ms": 0.05})


def test_only_sites_that_differ_are_judged() -> None:
    wide = replace(LINEAR, input_shape=(1, 500, 900), weight_shape=(800, 900))
    wide = replace(wide, output_shape=(1, 500, 800), reads="codes")
    rows = [row_of(PRODUCT, 20, 10), row_of(wide, 30, 10), row_of(wide, 10, 10.9)]

    found = judged(rows, X86_VNNI_COSTS)

    assert (found.sites, found.differing, found.right) == (3, 2, 1)
    assert (found.slower, found.slower_found, found.share) == (2, 1, 0.5)
    assert [site for site, _, _ in wrong_in(rows, X86_VNNI_COSTS)] == [wide]
    by_kind = judged_by(rows, X86_VNNI_COSTS, lambda row: site_in(row).kind)
    assert {kind: one.right for kind, one in by_kind.items()} == {"matmul": 1, "linear": 0}


def test_the_fit_finds_the_costs_that_made_the_times() -> None:
    sites = [
        replace(site, reads=reads, input_shape=(1, rows, inside), weight_shape=(outside, inside))
        for site in (LINEAR, replace(LINEAR, activation="GELU"))
        for reads in ("codes", "bfloat16", "float32")
        for rows, inside, outside in ((7, 64, 32), (90, 128, 512), (300, 1024, 64))
    ]
    sites = [
        replace(site, output_shape=(1, site.input_shape[1], site.weight_shape[0])) for site in sites
    ]
    planted = [predict(site, X86_VNNI_COSTS) for site in sites]
    rows = [
        row_of(site, 1e3 * one.int8_ms, 1e3 * one.bf16_ms)
        for site, one in zip(sites, planted, strict=True)
        if one is not None
    ]

    found = [predict(site, fitted(rows)) for site in sites]

    for one, expected in zip(found, planted, strict=True):
        assert one is not None
        assert expected is not None
        assert one.int8_ms == pytest.approx(expected.int8_ms, rel=0.02)
        assert one.bf16_ms == pytest.approx(expected.bf16_ms, rel=0.02)


@pytest.mark.parametrize("site", [CONV, LINEAR, PRODUCT, replace(CONV, residual="float")])
def test_both_modules_of_a_site_compute_the_same(site: Site) -> None:
    integer, short = IntegerSite(site).eval(), FloatSite(site).eval()
    if site.kind != "matmul":
        scales = integer.scales.reshape(-1, *[1] * (integer.codes.dim() - 1))
        short.weight.copy_(integer.codes * scales)
        short.bias = integer.bias

    codes = integer(*inputs_of(site, integer=True))
    expected = short(*inputs_of(site, integer=False)).float()

    found = (codes.float() - ZERO_POINT) * SCALE if site.writes_codes else codes.float()
    assert found.shape == site.output_shape
    error = (found - expected.clamp(-2.56, 2.54) if site.writes_codes else found - expected).norm()
    # A few of the random inputs lie outside the range of the codes.
    assert error < 0.1 * expected.norm()


def test_inputs_arrive_as_the_site_says() -> None:
    codes, addend = inputs_of(CONV, integer=True)
    short, short_addend = inputs_of(CONV, integer=False)

    assert (codes.dtype, addend.dtype) == (torch.uint8, torch.uint8)
    assert (short.dtype, short_addend.dtype) == (torch.bfloat16, torch.bfloat16)
    assert codes.is_contiguous(memory_format=torch.channels_last)
    assert inputs_of(LINEAR, integer=False)[0].dtype is torch.float32
    assert [one.dtype for one in inputs_of(PRODUCT, integer=True)] == [torch.bfloat16] * 2


def test_a_larger_batch_has_more_rows_and_the_same_weight() -> None:
    conv, product = in_batches(CONV, 4), in_batches(PRODUCT, 4)

    assert (conv.macs, conv.weight_shape) == (4 * CONV.macs, CONV.weight_shape)
    assert (product.macs, product.weight_shape) == (4 * PRODUCT.macs, (8, 4, 5))


@pytest.mark.slow
def test_a_site_is_timed_with_the_int8_kernel_it_stands_for() -> None:
    from benchmarks.site_timing import measure

    found = measure(LINEAR, 0.01, rounds=3)

    assert found["kernels"] == {"qlinear": 1}
    assert cast("float", found["int8_ms"]) > 0
    assert cast("float", found["bf16_ms"]) > 0


def test_the_shipped_table_tells_the_sign_of_measured_sites_it_was_not_fitted_to() -> None:
    rows = rows_in(read(RESULTS))

    held_out, everything = judged(judged_rows(rows), X86_VNNI_COSTS), judged(rows, X86_VNNI_COSTS)

    assert everything.sites >= held_out.sites >= 200
    assert held_out.share >= 0.9
    assert everything.share >= 0.9
    assert held_out.slower_found >= 0.8 * held_out.slower
