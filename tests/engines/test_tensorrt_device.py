"""What TensorRT builds and runs; needs its library and a CUDA device."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy import transform
from embedl_deploy.backend import use_backend
from embedl_deploy.engines import TensorRTEngine, TensorRTEngineConfig
from embedl_deploy.engines.tensorrt_config import Route
from embedl_deploy.quantize import convert, quantize

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(
        find_spec("tensorrt") is None or not torch.cuda.is_available(),
        reason="needs the package tensorrt and a CUDA device",
    ),
]
ROUTES: list[Route] = ["onnx", "torch-tensorrt", "torch-tensorrt-jit"]
BATCH = SimpleNamespace(dynamic_shapes=({0: Dim("batch", min=1, max=16)},))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 8))
    return nn.Sequential(*layers).eval().cuda()


def images(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, 8, 8, generator=generator).cuda()


def outcome(engine: TensorRTEngine, x: Tensor) -> Tensor:
    result = engine.infer(x)
    assert isinstance(result, Tensor)
    return result


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).square().mean() / expected.square().mean()).sqrt())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("rest", [None, torch.float16, torch.bfloat16])
def test_runs_what_it_built_on_every_route(route: Route, rest: torch.dtype | None) -> None:
    module, x = network(), images()
    config = TensorRTEngineConfig(route=route, rest_dtype=rest)

    engine = TensorRTEngine(config).build(module, None, [(x,)])

    with torch.no_grad():
        assert relative(outcome(engine, x), module(x)) < (1e-3 if rest is None else 2e-2)


@pytest.mark.parametrize("route", ["onnx", "torch-tensorrt"])
def test_loads_what_it_saved_and_takes_every_declared_batch(route: Route, tmp_path: Path) -> None:
    module = network()
    built = TensorRTEngine(TensorRTEngineConfig(route=route))
    built.build(module, BATCH, [(images(),)], "cuda", tmp_path)

    loaded = TensorRTEngine.from_dict(None, built.to_dict())
    loaded.deploy(None)

    for batch in (1, 4, 16):
        x = images(batch)
        assert torch.equal(outcome(loaded, x), outcome(built, x))
        with torch.no_grad():
            assert relative(outcome(loaded, x), module(x)) < 1e-3


def test_integer_codes_give_the_values_of_the_converted_graph() -> None:
    x = images()
    with use_backend("tensorrt"):
        fused = transform(network(), (x,)).model.eval()
        converted = convert(quantize(fused, (x,), forward_loop=[(x,)]))

    engine = TensorRTEngine(TensorRTEngineConfig(rest_dtype=torch.float16))
    engine.build(converted, None, [(x,)])

    with torch.no_grad():
        assert relative(outcome(engine, x), converted(x)) < 3e-2


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_waits_for_the_callers_stream_and_the_caller_for_it(cuda_graphs: bool) -> None:
    module, x = network(), images()
    engine = TensorRTEngine(TensorRTEngineConfig(cuda_graphs=cuda_graphs))
    engine.build(module, None, [(x,)])
    inputs = [images(4) * step for step in range(1, 6)]
    with torch.no_grad():
        expected = [module(given) for given in inputs]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found: list[Tensor] = []
        for given in inputs:
            late = torch.zeros_like(given)
            torch.cuda._sleep(10_000_000)  # pyright: ignore[reportPrivateUsage]  # the input comes late
            late.copy_(given)
            found.append(outcome(engine, late) + 0)
    torch.cuda.current_stream().wait_stream(stream)

    assert all(relative(a, b) < 1e-3 for a, b in zip(found, expected, strict=True))


def test_timings_and_engines_are_kept_and_refitted(tmp_path: Path) -> None:
    config = TensorRTEngineConfig(
        timing_cache=str(tmp_path / "timings"),
        engine_cache=str(tmp_path / "engines"),
        refittable=True,
    )
    x, other = images(), network(seed=1)
    TensorRTEngine(config).build(network(), None, [(x,)])
    timings = (tmp_path / "timings").stat()

    engine = TensorRTEngine(config).build(other, None, [(x,)])

    assert timings.st_size > 0
    assert (tmp_path / "timings").stat().st_mtime_ns == timings.st_mtime_ns  # nothing was built
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 3
    with torch.no_grad():
        assert relative(outcome(engine, x), other(x)) < 1e-3
