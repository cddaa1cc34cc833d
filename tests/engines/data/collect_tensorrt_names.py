"""Writes ``tensorrt_names.json``: the names that TensorRT's Python packages know.

Their library cannot be installed on every machine; their wheels can be read on any:

    pip download --no-deps torch-tensorrt==2.13.0 torch-tensorrt==2.11.0 \
        tensorrt_cu13_bindings polygraphy -d wheels
    python tests/engines/data/collect_tensorrt_names.py wheels/*.whl
"""

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

RESULT = Path(__file__).with_name("tensorrt_names.json")
SETTINGS = "torch_tensorrt/dynamo/_settings.py"
COMPILE = "torch_tensorrt/dynamo/_compiler.py"
SAVE = "torch_tensorrt/_compile.py"
INPUT = "torch_tensorrt/_Input.py"
LOADERS = "polygraphy/backend/trt/loader.py"
CONFIG = "polygraphy/backend/trt/config.py"
PROFILE = "polygraphy/backend/trt/profile.py"


def torch_tensorrt_names(read: "Reader") -> dict[str, list[str]]:
    """Returns the settings, the keywords of ``compile`` and ``save``, and those of ``Input``."""
    return {
        "settings": fields(class_in(read(SETTINGS), "CompilationSettings")),
        "compile": parameters(function_in(read(COMPILE), "compile")),
        "save": parameters(function_in(read(SAVE), "save")),
        "input": keys_of(class_in(read(INPUT), "Input"), "kwargs"),
    }


def polygraphy_names(read: "Reader") -> dict[str, list[str]]:
    """Returns the keywords of the loaders; ``CreateConfig`` takes those of its base too."""
    config = read(CONFIG)
    bases = [
        initializer(class_in(config, name)) for name in ("_CreateConfigCommon", "CreateConfig")
    ]
    loaders = read(LOADERS)
    return {
        "CreateConfig": sorted({name for base in bases for name in parameters(base)}),
        "NetworkFromOnnxPath": parameters(initializer(class_in(loaders, "NetworkFromOnnxPath"))),
        "EngineBytesFromNetwork": parameters(
            initializer(class_in(loaders, "EngineBytesFromNetwork"))
        ),
        "Profile.add": parameters(function_in(class_in(read(PROFILE), "Profile"), "add")),
    }


def bindings_names(binary: bytes) -> list[str]:
    """Returns the identifiers among the strings of a binary.

    A linker stores a string that ends another one only there, so that every ending counts.
    """
    found = re.findall(rb"[A-Za-z0-9_]*[a-z_0-9]\x00|[A-Z][A-Za-z0-9_]*\x00", binary)
    names = {text[:-1].decode() for text in found}
    return sorted(name for name in names if 2 < len(name) <= 40 and not _MANGLED.search(name))


_MANGLED = re.compile(r"^_Z|^N\d|^S\d|^\d|St\d|nvinfer|pybind|^PK?N|^K?N\d")


class Reader:
    """Reads modules from a wheel, or from where packages are installed."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, name: str) -> ast.Module:
        return ast.parse(self.bytes_of(name))

    def bytes_of(self, name: str) -> bytes:
        if self.place.is_dir():
            return (self.place / name).read_bytes()
        with zipfile.ZipFile(self.place) as wheel:
            return wheel.read(name)


def class_in(tree: ast.AST, name: str) -> ast.ClassDef:
    return next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)


def function_in(tree: ast.AST, name: str) -> ast.FunctionDef:
    return next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)


def initializer(kind: ast.ClassDef) -> ast.FunctionDef:
    return function_in(kind, "__init__")


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return sorted(a.arg for a in (*given.args, *given.kwonlyargs) if a.arg != "self")


def fields(kind: ast.ClassDef) -> list[str]:
    return sorted(
        line.target.id
        for line in kind.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    )


def keys_of(tree: ast.AST, name: str) -> list[str]:
    """Returns the constants by which ``name`` is subscripted."""
    return sorted(set(_keys(tree, name)))


def _keys(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            key = node.slice
            if node.value.id == name and isinstance(key, ast.Constant):
                yield str(key.value)


def main(wheels: list[str]) -> None:
    collected: dict[str, dict[str, object]] = {}
    for wheel in map(Path, wheels):
        package, version = wheel.name.split("-")[:2]
        reader = Reader(wheel)
        if package == "torch_tensorrt":
            names: object = torch_tensorrt_names(reader)
        elif package == "polygraphy":
            names = polygraphy_names(reader)
        else:
            names = bindings_names(reader.bytes_of("tensorrt_bindings/tensorrt.so"))
        collected.setdefault(package, {})[version] = names
    RESULT.write_text(json.dumps(collected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
