from dataclasses import replace

import pytest

from embedl_deploy.backends.x86_costs import X86_VNNI_COSTS
from embedl_deploy.quantization.costs import (
    KernelCost,
    PrecisionCosts,
    TargetCosts,
    family_of,
    parts_of_time,
    predict,
    terms_of,
)
from embedl_deploy.quantization.site import Site

COSTS = TargetCosts(
    measured_on="the test's own",
    command="none",
    int8=PrecisionCosts(
        {"conv": KernelCost(1.0, 10.0), "linear": KernelCost(1.0, 10.0)}, 50.0, 100.0, 5.0, 200.0
    ),
    bf16=PrecisionCosts(
        {name: KernelCost(2.0, 10.0) for name in ("conv", "linear", "matmul", "depthwise conv")},
        30.0,
        40.0,
        3.0,
        80.0,
    ),
    int8_activations={"conv": ("ReLU",), "linear": ("ReLU", "GELU")},
)
LINEAR = Site("linear", (1, 100, 1000), (2000, 1000), (1, 100, 2000), reads="codes")
CONV = Site(
    "conv", (1, 64, 20, 20), (32, 64, 3, 3), (1, 32, 20, 20), (1, 1), (1, 1), (1, 1), reads="codes"
)
DEPTHWISE = replace(CONV, weight_shape=(64, 1, 3, 3), output_shape=(1, 64, 20, 20), groups=64)
PRODUCT = Site("matmul", (2, 10, 8), (2, 8, 30), (2, 10, 30), reads="bfloat16")


def test_a_linear_layer_costs_the_sum_of_its_parts() -> None:
    found = predict(LINEAR, COSTS)

    # 200 million multiply-accumulates; 0.1 M values in, 2 M weights, 0.2 M values out.
    assert found is not None
    assert found.int8_ms == pytest.approx((50 + 200 + 10 * (0.1 + 2.0 + 2 * 0.2)) / 1e3)
    assert found.bf16_ms == pytest.approx((30 + 400 + 10 * 2 * (0.1 + 2.0 + 0.2)) / 1e3)
    assert found.gain == pytest.approx(found.bf16_ms / found.int8_ms)
    assert not found.is_slower


def test_codes_in_the_output_are_written_in_one_byte() -> None:
    before = terms_of(LINEAR, COSTS, "int8")
    after = terms_of(replace(LINEAR, writes_codes=True), COSTS, "int8")

    assert before.megabytes - after.megabytes == pytest.approx(0.2)


def test_a_float_input_costs_a_conversion_in_int8_alone() -> None:
    int8 = parts_of_time(replace(LINEAR, reads="bfloat16"), COSTS, "int8")
    bf16 = parts_of_time(replace(LINEAR, reads="bfloat16"), COSTS, "bf16")

    assert int8["conversions"] == pytest.approx(5 + 200 * 0.1)
    assert bf16["conversions"] == 0.0


def test_a_float32_input_costs_a_conversion_in_both() -> None:
    site = replace(LINEAR, reads="float32")

    assert parts_of_time(site, COSTS, "int8")["conversions"] == pytest.approx(5 + 200 * 0.1)
    assert parts_of_time(site, COSTS, "bf16")["conversions"] == pytest.approx(3 + 80 * 0.1)


def test_an_activation_outside_the_kernel_is_a_loop_over_the_output() -> None:
    inside = parts_of_time(replace(LINEAR, activation="GELU"), COSTS, "int8")
    outside = parts_of_time(replace(LINEAR, activation="Sigmoid"), COSTS, "int8")

    assert (inside["the activation"], inside["conversions"]) == (pytest.approx(100 * 0.2), 0.0)
    assert (outside["the activation"], outside["conversions"]) == (
        0.0,
        pytest.approx(5 + 200 * 0.2),
    )


def test_an_addend_in_codes_is_read_in_one_byte_and_one_in_float_is_a_loop() -> None:
    plain, codes, loop = (
        parts_of_time(replace(CONV, residual=kind), COSTS, "int8")
        for kind in ("", "codes", "float")
    )
    values = CONV.output_size / 1e6

    assert codes["memory"] - plain["memory"] == pytest.approx(10 * values)
    assert codes["conversions"] == 0.0
    assert loop["conversions"] == pytest.approx(5 + 200 * values)


def test_what_has_no_int8_kernel_is_slower_by_its_conversions_and_says_so() -> None:
    found = predict(PRODUCT, COSTS)

    values = (2 * 10 * 8 + 2 * 8 * 30) / 1e6
    assert found is not None
    assert found.int8_ms - found.bf16_ms == pytest.approx((2 * 5 + 200 * values) / 1e3)
    assert found.is_slower
    assert found.reason.startswith("no int8 kernel for a matmul: it runs in float")


def test_what_the_table_lacks_is_not_predicted() -> None:
    assert predict(replace(CONV, kind="transposed conv"), COSTS) is None


@pytest.mark.parametrize(
    ("site", "family"),
    [
        (LINEAR, "linear"),
        (replace(LINEAR, input_shape=(1, 1000), output_shape=(1, 2000)), "row"),
        (CONV, "conv"),
        (replace(CONV, weight_shape=(32, 64, 1, 1)), "pointwise conv"),
        (replace(CONV, weight_shape=(32, 16, 1, 1), groups=4), "grouped conv"),
        (DEPTHWISE, "depthwise conv"),
        (PRODUCT, "matmul"),
    ],
)
def test_the_family_decides_the_kernel(site: Site, family: str) -> None:
    assert family_of(site) == family


def test_multiply_accumulates_are_counted_by_shape() -> None:
    assert LINEAR.macs == 100 * 1000 * 2000
    assert CONV.macs == 20 * 20 * 32 * 64 * 9
    assert DEPTHWISE.macs == 20 * 20 * 64 * 9
    assert PRODUCT.macs == 2 * 10 * 30 * 8
    assert replace(CONV, kind="transposed conv", output_shape=(1, 32, 40, 40)).macs == CONV.macs


def test_channels_are_counted_in_whole_vectors() -> None:
    site = replace(CONV, input_shape=(1, 3, 20, 20), weight_shape=(24, 3, 3, 3))

    # Outputs in vectors of 16; inputs in groups of four bytes, or of two bfloat16.
    assert terms_of(site, COSTS, "int8").mmacs == pytest.approx(400 * 9 * 32 * 4 / 1e6)
    assert terms_of(site, COSTS, "bf16").mmacs == pytest.approx(400 * 9 * 32 * 4 / 1e6)
    narrow = replace(site, input_shape=(1, 6, 20, 20), weight_shape=(24, 6, 3, 3))
    assert terms_of(narrow, COSTS, "int8").mmacs == pytest.approx(400 * 9 * 32 * 8 / 1e6)
    assert terms_of(narrow, COSTS, "bf16").mmacs == pytest.approx(400 * 9 * 32 * 6 / 1e6)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("site", [LINEAR, CONV, DEPTHWISE, PRODUCT])
def test_more_rows_never_cost_less_by_the_shipped_table(site: Site, precision: str) -> None:
    larger = replace(
        site,
        input_shape=(4 * site.input_shape[0], *site.input_shape[1:]),
        output_shape=(4 * site.output_shape[0], *site.output_shape[1:]),
    )

    before, after = (predict(one, X86_VNNI_COSTS) for one in (site, larger))

    assert before is not None
    assert after is not None
    assert getattr(after, f"{precision}_ms") > getattr(before, f"{precision}_ms")


def test_the_shipped_table_knows_what_is_slow_in_int8_on_x86() -> None:
    small = replace(CONV, input_shape=(1, 32, 1, 1), weight_shape=(8, 32, 1, 1))
    small = replace(small, output_shape=(1, 8, 1, 1), padding=(0, 0))

    slower = [predict(site, X86_VNNI_COSTS) for site in (DEPTHWISE, PRODUCT, small)]
    wide = replace(CONV, input_shape=(1, 64, 56, 56), output_shape=(1, 32, 56, 56))
    faster = [predict(site, X86_VNNI_COSTS) for site in (LINEAR, wide)]

    assert all(found is not None and found.is_slower for found in slower)
    assert all(found is not None and found.gain > 1.3 for found in faster)
    assert slower[2] is not None
    assert "the call" in slower[2].reason
