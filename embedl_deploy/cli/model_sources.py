"""Finds the model that a user names: a factory, a saved program, or a model library's name."""

import difflib
import importlib
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from embedl_deploy.cli.named_models import LIBRARIES, ModelLibrary
from embedl_deploy.cli.random_weights import (
    fill_zero_parameters,
    random_inputs,
    seeded,
    warm_up_norms,
)
from embedl_deploy.errors import ModelSourceError

Inputs = tuple[tuple[object, ...], dict[str, object]]


@dataclass(frozen=True)
class LoadedModel:
    """A model, and inputs it can be called with."""

    name: str
    """What the user asked for."""

    model: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object] = field(default_factory=dict[str, object])
    has_random_weights: bool = False

    def call(self, model: Callable[..., object] | None = None) -> object:
        """Calls ``model`` (its own if None) on the example inputs."""
        return (model or self.model)(*self.args, **self.kwargs)

    def random_inputs(self, count: int, seed: int = 1) -> Iterable[Inputs]:
        """Yields inputs like the example, filled with random numbers."""
        return random_inputs(self.args, self.kwargs, count, seed)


def load_model(
    source: str, *, input_shapes: tuple[tuple[int, ...], ...] = (), seed: int = 0
) -> LoadedModel:
    """Returns the model that ``source`` names, with example inputs.

    A library's model is in eval mode; what a factory returns is left in the mode it has.

    Args:
        source: One of ``package.module:factory`` (a callable without arguments that returns a
            model, or a model with its args, or with args and kwargs), a file that ends in
            ``.pt2``, ``all-MiniLM-L6-v2``, or a name that torchvision, timm or transformers
            knows (``resnet50``, ``timm:vit_small_patch16_224``, ``transformers:bert-base``).
        input_shapes: Shapes of float inputs, for a factory that returns none or instead of
            the usual ones.
        seed: For random weights and inputs. Batch norms with random weights are warmed up.

    Raises:
        ModelSourceError: Nothing can be loaded under this name; close names are suggested.
        MissingDependencyError: The library that the name belongs to is not installed.
    """
    if source.endswith(".pt2"):
        return _from_saved_program(source, input_shapes, seed)
    library, separator, name = source.partition(":")
    if separator and library not in LIBRARIES:
        return _from_factory(source, library, name, input_shapes, seed)
    libraries = [LIBRARIES[library]] if separator else list(LIBRARIES.values())
    for candidate in libraries:
        known = candidate.find(name if separator else source)
        if known is not None:
            return _from_library(source, candidate, known, input_shapes, seed)
    raise ModelSourceError(_unknown_name(source, name if separator else source, libraries))


def _from_library(
    source: str,
    library: ModelLibrary,
    name: str,
    input_shapes: tuple[tuple[int, ...], ...],
    seed: int,
) -> LoadedModel:
    with seeded(seed):
        model, args, kwargs = library.load(name)
        model.eval()
        if input_shapes:
            args, kwargs = _floats(input_shapes, seed), {}
        if library.has_random_weights:
            fill_zero_parameters(model)
            loaded = LoadedModel(source, model, args, kwargs, has_random_weights=True)
            inputs = iter(loaded.random_inputs(4, seed))
            warm_up_norms(model, lambda module: _call_once(module, *next(inputs)))
    return LoadedModel(source, model, args, kwargs, library.has_random_weights)


def _from_saved_program(
    source: str, input_shapes: tuple[tuple[int, ...], ...], seed: int
) -> LoadedModel:
    path = Path(source)
    if not path.is_file():
        raise ModelSourceError(f"there is no file {source}")
    if not zipfile.is_zipfile(path):
        raise ModelSourceError(
            f"{source} is cut short, or was not written by torch.export.save: save the program "
            "again, or copy the whole file"
        )
    try:
        program = torch.export.load(path)
        module = program.module()
    # torch.export.load documents no errors: these are what foreign zip files were seen to raise.
    except (RuntimeError, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelSourceError(
            f"{source} cannot be read as a program saved by torch.export.save "
            f"(is it whole, and written by this version of torch?): {first_line}"
        ) from error
    if input_shapes:
        return LoadedModel(source, module, _floats(input_shapes, seed))
    if program.example_inputs is None:
        raise ModelSourceError(f"{source} holds no example inputs: give --input with their shapes")
    args, kwargs = program.example_inputs
    return LoadedModel(source, module, tuple(args), dict(kwargs))


def _from_factory(
    source: str,
    module_name: str,
    attribute: str,
    input_shapes: tuple[tuple[int, ...], ...],
    seed: int,
) -> LoadedModel:
    made = import_object(source, module_name, attribute)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ModelSourceError(f"{source} is a {type(made).__name__}, not a factory of a model")
        with seeded(seed):
            made = made()
    model, args, kwargs = _unpack(source, made)
    if input_shapes:
        args, kwargs = _floats(input_shapes, seed), {}
    if not args and not kwargs:
        raise ModelSourceError(
            f"{source} returned a model without example inputs: return (model, args) from it, "
            "or give --input with their shapes"
        )
    return LoadedModel(source, model, args, kwargs)


def import_object(source: str, module_name: str, attribute: str) -> object:
    """Returns what ``module:attribute`` names; modules in the current folder are found too.

    Raises:
        ModelSourceError: The module cannot be imported or has no such attribute.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        libraries = ", ".join(LIBRARIES)
        raise ModelSourceError(
            f"cannot import {module_name!r} for {source!r}: {error} (the part before the colon "
            f"is a Python module, or one of {libraries})"
        ) from error
    value: object = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            close = difflib.get_close_matches(part, dir(value), n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ModelSourceError(f"{module_name} has no attribute {attribute!r}{hint}")
        value = getattr(value, part)
    return value


def _unpack(source: str, made: object) -> tuple[nn.Module, tuple[object, ...], dict[str, object]]:
    parts = cast(tuple[object, ...], made) if isinstance(made, tuple) else (made,)
    model = parts[0]
    args: object = parts[1] if len(parts) > 1 else ()
    kwargs: object = parts[2] if len(parts) > 2 else {}
    if isinstance(args, Tensor):
        args = (args,)
    if not isinstance(model, nn.Module) or len(parts) > 3:
        raise ModelSourceError(
            f"{source} must return a torch.nn.Module, (model, args) or (model, args, kwargs), "
            f"got {_type_names(parts)}"
        )
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise ModelSourceError(
            f"{source} must return example inputs as a tuple and a dict, got {_type_names(parts)}"
        )
    return model, cast(tuple[object, ...], args), cast(dict[str, object], kwargs)


def _type_names(parts: tuple[object, ...]) -> str:
    return ", ".join(type(part).__name__ for part in parts)


def _floats(shapes: tuple[tuple[int, ...], ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _call_once(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    return module(*args, **kwargs)


def _unknown_name(source: str, name: str, libraries: list[ModelLibrary]) -> str:
    known = {candidate for library in libraries for candidate in library.names()}
    close = difflib.get_close_matches(name, sorted(known), n=4, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "no known name is close to it"
    return (
        f"no model is named {source!r}: {hint} (a model is module:factory, a .pt2 file, or a name "
        "that torchvision, timm or transformers knows)"
    )
