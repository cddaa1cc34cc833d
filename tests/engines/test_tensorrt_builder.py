"""Everything up to TensorRT's builder: files, profiles, settings and caches."""

import itertools
import threading
from pathlib import Path
from typing import Protocol, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy.engines import TensorRTEngineConfig
from embedl_deploy.engines.onnx_file import OnnxFile, write_onnx
from embedl_deploy.engines.tensorrt_builder import (
    BuildRequest,
    builder_settings,
    built_engine,
    key_settings,
    polygraphy_profiles,
)
from embedl_deploy.engines.tensorrt_cache import (
    EngineCache,
    content_key,
    merge_timings,
    read_timings,
    structure_key,
)
from embedl_deploy.engines.tensorrt_library import Library, Polygraphy
from embedl_deploy.engines.tensorrt_profiles import InputProfile, profiles_of
from embedl_deploy.errors import BuildError
from embedl_deploy.quantization.quantize_dequantize import decomposed

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def two_layers(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        module.get_parameter("0.weight").mul_(scale)
    return module


def onnx_of(module: nn.Module, path: Path, largest: int | None = None, x: Tensor = X) -> OnnxFile:
    shapes = None if largest is None else ({0: Dim("batch", min=1, max=largest)},)
    return write_onnx(module, (x,), path, shapes)


# --- the file, its profiles and settings


def test_profiles_come_from_the_declared_sizes_and_the_sample(tmp_path: Path) -> None:
    written = onnx_of(two_layers(), tmp_path / "model.onnx", largest=16)

    assert profiles_of(written.form, written.names, (X,)) == (
        InputProfile(written.names[0], smallest=(1, 8), best=(2, 8), largest=(16, 8)),
    )


def test_fixed_inputs_need_no_profile(tmp_path: Path) -> None:
    written = onnx_of(two_layers(), tmp_path / "model.onnx")

    assert profiles_of(written.form, written.names, (X,)) == (None,)


def test_a_size_without_an_upper_bound_is_named(tmp_path: Path) -> None:
    written = write_onnx(two_layers(), (X,), tmp_path / "model.onnx", ({0: Dim.DYNAMIC},))

    with pytest.raises(BuildError, match=r"largest size for dimension 0 of input '\w+', declared"):
        profiles_of(written.form, written.names, (X,))


class Pools:
    WORKSPACE = "workspace"


class Named:
    """The two names of the library that settings are made with."""

    MemoryPoolType = Pools
    __version__ = "11.0"


def request(config: TensorRTEngineConfig, file: OnnxFile, largest: int = 16) -> BuildRequest:
    profile = InputProfile("x", (1, 8), (2, 8), (largest, 8))
    return BuildRequest(file, [profile, None], config, "H200 9.0")


def test_settings_reach_the_builder_under_its_names(tmp_path: Path) -> None:
    timings = tmp_path / "timings"
    timings.write_bytes(b"known")
    config = TensorRTEngineConfig(
        workspace_bytes=2**20, optimization_level=5, refittable=True, timing_cache=str(timings)
    )
    file = onnx_of(two_layers(), tmp_path / "model.onnx")

    settings = builder_settings(request(config, file), cast("Library", Named))

    read = settings.pop("load_timing_cache")
    assert cast("Readable", read).read() == b"known"
    assert settings == {
        "refittable": True,
        "memory_pool_limits": {"workspace": 2**20},
        "builder_optimization_level": 5,
    }


class Readable(Protocol):
    def read(self) -> bytes: ...


class Recorded(dict[str, tuple[tuple[int, ...], ...]]):
    def add(
        self,
        name: str,
        min: tuple[int, ...],  # noqa: A002
        opt: tuple[int, ...],
        max: tuple[int, ...],  # noqa: A002
    ) -> None:
        self[name] = (min, opt, max)


class Loaders:
    Profile = Recorded


def test_one_profile_holds_all_inputs_that_vary(tmp_path: Path) -> None:
    file = onnx_of(two_layers(), tmp_path / "model.onnx")
    made = request(TensorRTEngineConfig(), file)

    assert polygraphy_profiles(made.profiles, cast("Polygraphy", Loaders)) == [
        {"x": ((1, 8), (2, 8), (16, 8))}
    ]
    assert polygraphy_profiles([None], cast("Polygraphy", Loaders)) == []


# --- caches


def test_an_engine_is_found_again_by_all_that_it_was_built_from(tmp_path: Path) -> None:
    file = onnx_of(two_layers(), tmp_path / "model.onnx")
    again = onnx_of(two_layers(), tmp_path / "again.onnx")
    other = onnx_of(two_layers(scale=1.5), tmp_path / "other.onnx")
    plain = key_settings(request(TensorRTEngineConfig(), file), "11.0")
    changed = [
        key_settings(request(TensorRTEngineConfig(), file), "11.1"),
        key_settings(request(TensorRTEngineConfig(optimization_level=1), file), "11.0"),
        key_settings(request(TensorRTEngineConfig(), file, largest=32), "11.0"),
        {**plain, "target": "A100 8.0"},
    ]

    key = content_key(file.path, None, plain)

    assert content_key(again.path, None, plain) == key
    others = [content_key(file.path, None, settings) for settings in changed]
    assert len({key, content_key(other.path, None, plain), *others}) == 6


def test_where_results_are_kept_is_no_part_of_the_key(tmp_path: Path) -> None:
    file = onnx_of(two_layers(), tmp_path / "model.onnx")
    placed = TensorRTEngineConfig(timing_cache="timings", engine_cache="here", cuda_graphs=True)

    assert key_settings(request(placed, file), "11.0") == key_settings(
        request(TensorRTEngineConfig(), file), "11.0"
    )


def test_new_float_weights_have_the_structure_that_can_be_refitted(tmp_path: Path) -> None:
    first = onnx_of(two_layers(), tmp_path / "model.onnx")
    second = onnx_of(two_layers(scale=1.5), tmp_path / "other.onnx")
    torch.manual_seed(0)
    wider = onnx_of(nn.Linear(8, 16).eval(), tmp_path / "wider.onnx")

    key = structure_key(first.path, {})

    assert structure_key(second.path, {}) == key
    assert structure_key(wider.path, {}) != key
    assert structure_key(first.path, {"version": 2}) != key


class Rounded(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(-8, 8, dtype=torch.int8).reshape(2, 8))
        self.register_buffer("scales", torch.tensor([scale, 0.5]))
        self.register_buffer("zeros", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        tensors = (self.codes, self.scales, self.zeros)
        weight = decomposed().dequantize_per_channel.default(*tensors, 0, -128, 127, torch.int8)
        return torch.nn.functional.linear(x, weight)


def test_new_scales_are_another_structure(tmp_path: Path) -> None:
    first = onnx_of(Rounded(0.25).eval(), tmp_path / "first.onnx")
    second = onnx_of(Rounded(0.75).eval(), tmp_path / "second.onnx")

    assert structure_key(first.path, {}) != structure_key(second.path, {})


def test_a_damaged_engine_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    cache.write("key", b"engine")
    assert cache.read("key") == b"engine"
    assert cache.read("other") is None
    (file,) = cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"X")

    assert cache.read("key") is None


def test_timings_of_several_builds_are_merged_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "timings"
    assert read_timings(path) == b""

    def learn(worker: int) -> None:
        for step in range(20):
            line = f"{worker}:{step}\n".encode()
            merge_timings(path, lambda known, line=line: known + line)

    threads = [threading.Thread(target=learn, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    expected = {f"{worker}:{step}" for worker, step in itertools.product(range(4), range(20))}
    assert set(read_timings(path).decode().split()) == expected


class Workshop:
    """Stands where TensorRT builds and refits, and notes what it was asked for."""

    def __init__(self, *, can_refit: bool = True) -> None:
        self.can_refit = can_refit
        self.asked: list[str] = []

    def engine(self, config: TensorRTEngineConfig, file: OnnxFile) -> bytes:
        made = request(config, file)
        return built_engine(made, cast("Library", Named), self.build, self.refit)

    def build(self, made: BuildRequest, _library: Library) -> bytes:
        self.asked.append("build")
        return b"built of " + made.file.path.name.encode()

    def refit(self, content: bytes, path: Path, _library: Library) -> bytes | None:
        self.asked.append("refit")
        return content + b", weights of " + path.name.encode() if self.can_refit else None


@pytest.mark.parametrize(
    ("refittable", "can_refit", "asked", "second"),
    [
        (False, True, ["build", "build"], b"built of b.onnx"),
        (True, True, ["build", "refit"], b"built of a.onnx, weights of b.onnx"),
        (True, False, ["build", "refit", "build"], b"built of b.onnx"),
    ],
)
def test_the_cache_saves_builds_and_takes_new_weights(
    refittable: bool, can_refit: bool, asked: list[str], second: bytes, tmp_path: Path
) -> None:
    folder = str(tmp_path / "engines")
    config = TensorRTEngineConfig(engine_cache=folder, refittable=refittable)
    workshop = Workshop(can_refit=can_refit)
    first_file = onnx_of(two_layers(), tmp_path / "a.onnx")
    second_file = onnx_of(two_layers(scale=1.5), tmp_path / "b.onnx")

    engines = [workshop.engine(config, file) for file in (first_file, second_file) * 2]

    assert engines == [b"built of a.onnx", second] * 2
    assert workshop.asked == asked
