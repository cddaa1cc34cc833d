"""Compiles a site in both precisions and times them in rotating blocks."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.site_modules import FloatSite, IntegerSite, inputs_of
from embedl_deploy.engines.inductor_build import inductor_settings
from embedl_deploy.quantization.site import Site
from embedl_deploy.tuning.machine import JsonValue
from embedl_deploy.tuning.measure import measure_in_rotation, timed

Runner = Callable[[list[Tensor]], object]


def measure(site: Site, seconds: float, rounds: int = 12) -> dict[str, JsonValue]:
    """Returns the median of both precisions in milliseconds, and the int8 kernels that ran."""
    kernels: dict[str, int] = {}
    integer = compiled_call(IntegerSite(site), inputs_of(site, integer=True), kernels)
    short = compiled_call(FloatSite(site), inputs_of(site, integer=False), {})
    with torch.no_grad():
        timings = measure_in_rotation(
            {"int8": timed(integer), "bf16": timed(short)}, max_rounds=rounds, budget_s=seconds
        )
    return {
        "int8_ms": timings["int8"].median_ms,
        "bf16_ms": timings["bf16"].median_ms,
        "int8_p10_ms": timings["int8"].p10_ms,
        "bf16_p10_ms": timings["bf16"].p10_ms,
        "calls": timings["int8"].calls,
        "kernels": dict(kernels),
    }


def compiled_call(
    module: nn.Module, inputs: list[Tensor], kernels: dict[str, int]
) -> Callable[[], object]:
    """Returns a call of the compiled code itself, without torch.compile's guards."""
    run = _compiled(module, inputs, kernels)
    return lambda: run(list(inputs))


def _compiled(module: nn.Module, inputs: list[Tensor], kernels: dict[str, int]) -> Runner:
    read = ReadsOne(module) if len(inputs) == 1 else ReadsTwo(module)
    tracer = torch.fx.Tracer()
    tracer.proxy_buffer_attributes = True  # else what is computed from weights is traced away
    traced = torch.fx.GraphModule(read.eval(), tracer.trace(read))
    with inductor_settings({"cpp.enable_kernel_profile": False}, freezing=True, counted=kernels):
        return _inner_code(traced, inputs)


def _inner_code(traced: torch.fx.GraphModule, inputs: list[Tensor]) -> Runner:
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.output_code import OutputCode

    made: list[Runner] = []

    def keep(*args: object, **kwargs: object) -> OutputCode:
        graph = compile_fx_inner(*args, **kwargs)  # pyright: ignore[reportArgumentType]  # passed on
        made.append(cast("Runner", graph))
        return graph

    call = cast("Callable[..., Sequence[Tensor]]", compile_fx(traced, inputs, inner_compile=keep))
    call(*inputs)
    graph = made[-1]
    return cast("Runner", getattr(graph, "current_callable", None) or graph)


class ReadsOne(nn.Module):
    """Fixes the number of inputs, which fx cannot see from a default."""

    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        return self.site(x)


class ReadsTwo(ReadsOne):
    """The same for two inputs."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # one more input
        return self.site(x, other)
