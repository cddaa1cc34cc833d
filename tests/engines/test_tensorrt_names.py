"""Every name of TensorRT's packages that is used is one that they know.

Their library cannot be installed on every machine, so the names lie beside in ``data``, collected
from the wheels by ``data/collect_tensorrt_names.py``.
"""

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import torch

from embedl_deploy.engines import TensorRTEngineConfig
from embedl_deploy.engines import tensorrt_builder as builder_file
from embedl_deploy.engines import tensorrt_library as library_file
from embedl_deploy.engines import tensorrt_torch as torch_file
from embedl_deploy.engines.tensorrt_runtime import _TYPES  # pyright: ignore[reportPrivateUsage]
from embedl_deploy.engines.tensorrt_torch import compile_settings

DATA = Path(__file__).with_name("data")
Names = dict[str, list[str]]
KNOWN = cast("dict[str, dict[str, object]]", json.loads((DATA / "tensorrt_names.json").read_text()))
VERSIONS = ["2.11.0", "2.13.0"]

ALL_FIELDS = TensorRTEngineConfig(
    route="torch-tensorrt",
    rest_dtype=torch.float16,
    workspace_bytes=2**30,
    optimization_level=4,
    timing_cache="timings",
    engine_cache="engines",
)


def torch_tensorrt(version: str) -> Names:
    return cast("Names", KNOWN["torch_tensorrt"][version])


def polygraphy() -> Names:
    (names,) = KNOWN["polygraphy"].values()
    return cast("Names", names)


def bindings() -> list[str]:
    (names,) = KNOWN["tensorrt_cu13_bindings"].values()
    return cast("list[str]", names)


def unknown_settings(names: list[str], version: str) -> list[str]:
    """Returns the names that ``compile`` or the settings lack; both routes take each of them."""
    known = torch_tensorrt(version)
    ours = {"engine_cache_dir"}  # compile makes the cache of it, and the settings do not hold it
    return [n for n in names if n not in known["compile"] or n not in {*known["settings"], *ours}]


def unknown_to(strings: list[str], names: list[str]) -> list[str]:
    """Returns the names that end no string of the binary: a linker merges equal endings."""
    return [name for name in names if not any(found.endswith(name) for found in strings)]


def tree_of(module: ModuleType) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text())


def protocols(tree: ast.Module) -> dict[str, ast.ClassDef]:
    kinds = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {kind.name: kind for kind in kinds if "Protocol" in map(ast.unparse, kind.bases)}


def members(kind: ast.ClassDef) -> list[str]:
    """Returns the attributes and methods that a protocol promises."""
    annotated = [node.target for node in kind.body if isinstance(node, ast.AnnAssign)]
    fields = [target.id for target in annotated if isinstance(target, ast.Name)]
    methods = [node.name for node in kind.body if isinstance(node, ast.FunctionDef)]
    return [name for name in (*fields, *methods) if not name.startswith("__")]


def keywords(kind: ast.ClassDef, method: str) -> list[str]:
    """Returns the keyword-only arguments of a method of a protocol."""
    found = next(n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == method)
    return [argument.arg for argument in found.args.kwonlyargs]


def names_of_the_bindings() -> list[str]:
    library, builder = protocols(tree_of(library_file)), protocols(tree_of(builder_file))
    kinds = [kind for name, kind in library.items() if name != "Polygraphy"]
    kinds += [builder["_TimingCache"], builder["_BuilderConfig"]]
    return [name for kind in kinds for name in members(kind)]


@pytest.mark.parametrize("version", VERSIONS)
def test_torch_tensorrt_knows_every_setting(version: str) -> None:
    names = list(compile_settings(ALL_FIELDS))

    assert len(names) == 9
    assert unknown_settings(names, version) == []
    assert unknown_settings(["workspace_sise"], version) == ["workspace_sise"]


def unknown_keywords(tree: ast.Module, version: str) -> list[str]:
    """Returns the keywords of our calls that torch-tensorrt's functions do not name."""
    ours, known = protocols(tree), torch_tensorrt(version)
    given = {
        "compile": keywords(ours["_Library"], "compile"),
        "save": keywords(ours["_Save"], "__call__"),
        "input": keywords(ours["_Input"], "__call__"),
    }
    return [name for call, names in given.items() for name in names if name not in known[call]]


@pytest.mark.parametrize("version", VERSIONS)
def test_torch_tensorrt_knows_the_keywords_of_its_functions(version: str) -> None:
    ours = protocols(tree_of(torch_file))

    assert keywords(ours["_Library"], "compile") == ["arg_inputs", "kwarg_inputs", "device"]
    assert set(keywords(ours["_Save"], "__call__")) == {"output_format", "retrace"}
    assert set(keywords(ours["_Input"], "__call__")) == {
        "min_shape", "opt_shape", "max_shape", "dtype"
    }  # fmt: skip
    assert unknown_keywords(tree_of(torch_file), version) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("keyword", ["kwarg_inputs", "retrace", "opt_shape"])
def test_one_keyword_misspelled_is_found(version: str, keyword: str) -> None:
    source = Path(str(torch_file.__file__)).read_text()
    misspelled = f"{keyword}_of"

    found = unknown_keywords(ast.parse(source.replace(keyword, misspelled)), version)

    assert found == [misspelled]


def unknown_to_polygraphy(builder: ast.Module, library: ast.Module) -> list[str]:
    """Returns the keywords that we give Polygraphy's loaders and that they do not name."""
    known, ours = polygraphy(), protocols(library)["Polygraphy"]
    settings = [
        node.slice.value
        for node in ast.walk(builder)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "settings"
        if isinstance(node.slice, ast.Constant)
    ]
    given = {
        "CreateConfig": [*map(str, settings), "refittable", "profiles"],
        "NetworkFromOnnxPath": ["path", *keywords(ours, "NetworkFromOnnxPath")],
        "EngineBytesFromNetwork": ["network", "config"],
        "Profile.add": ["name", "min", "opt", "max"],
    }
    return [name for call, names in given.items() for name in names if name not in known[call]]


def test_polygraphy_knows_the_keywords_of_its_loaders() -> None:
    builder, library = tree_of(builder_file), tree_of(library_file)
    source = ast.unparse(builder)

    assert '"memory_pool_limits"' in source.replace("'", '"')
    assert unknown_to_polygraphy(builder, library) == []
    assert set(polygraphy()["Profile.add"]) == {"name", "min", "opt", "max"}
    for keyword in ("memory_pool_limits", "builder_optimization_level", "load_timing_cache"):
        planted = ast.parse(source.replace(keyword, f"{keyword}_of"))
        assert unknown_to_polygraphy(planted, library) == [f"{keyword}_of"]


def test_the_bindings_have_every_name() -> None:
    names = names_of_the_bindings()

    assert {"execute_async_v3", "OnnxParserRefitter", "get_timing_cache"} <= set(names)
    assert unknown_to(bindings(), names) == []
    assert unknown_to(bindings(), list(_TYPES)) == []
    assert unknown_to(bindings(), ["excute_async_v3", "Refiter"]) == ["excute_async_v3", "Refiter"]


@pytest.mark.parametrize("package", ["torch_tensorrt", "polygraphy", "tensorrt_bindings"])
def test_the_collected_names_are_those_of_the_installed_package(package: str) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: its collected names stand for it")
    place = Path(next(iter(spec.submodule_search_locations))).parent
    collect = collector()

    if package == "tensorrt_bindings":
        binary = (place / package / "tensorrt.so").read_bytes()
        assert unknown_to(collect.bindings_names(binary), names_of_the_bindings()) == []
    elif package == "polygraphy":
        assert collect.polygraphy_names(collect.Reader(place)) == polygraphy()
    else:
        found = collect.torch_tensorrt_names(collect.Reader(place))
        assert found in [torch_tensorrt(version) for version in VERSIONS]


def collector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("collector", DATA / "collect_tensorrt_names.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
