"""What the attributes of a rule, and a list of rules, must be."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from torch import nn

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting.targets import checked_root


def require_several(patterns: object, field: str = "patterns") -> None:
    """Asserts that patterns are given as a list, also where there is but one.

    Raises:
        PatternError: It is a pattern itself, or nothing that can be gone through.
    """
    if isinstance(patterns, Iterable) and not isinstance(patterns, (str, type)):
        return
    shown = _name_of(patterns)
    raise PatternError(f"{field} is a list of patterns, got {shown} itself: write [{shown}]")


def require_tuples(rule: str, attributes: Mapping[str, object]) -> None:
    """Asserts that ``roots`` lists what nodes run, and ``outputs`` and ``qdq_points`` names.

    Raises:
        PatternError: One is no tuple, or holds something else.
    """
    for attribute, value in attributes.items():
        kind = "what nodes run" if attribute == "roots" else "names"
        if not isinstance(value, (tuple, list)):
            raise PatternError(
                f"{attribute} of {rule} is a tuple of {kind}, got {_name_of(value)}: write "
                f"({_name_of(value)},)"
            )
        for item in cast("tuple[object, ...]", value):
            if attribute == "roots":
                checked_root(rule, item)
            elif not isinstance(item, str):
                raise PatternError(f"{attribute} of {rule} is a tuple of names, got {item!r} in it")


def require_graft(rule: str, graft: object) -> None:
    """Asserts that ``graft`` can be called without arguments.

    Raises:
        PatternError: It is a module itself, or needs arguments.
    """
    if graft is None:
        return
    contract = f"graft of {rule} is called without arguments and returns a module"
    if isinstance(graft, nn.Module) or not callable(graft):
        raise PatternError(f"{contract}, got {graft!r}: write graft = lambda: … that makes it")
    lost = _needed(graft)
    if lost:
        raise PatternError(
            f"{contract}, and {_name_of(graft)} needs {', '.join(lost)}: write a lambda that gives "
            "them, or define replace(), which sees the match"
        )


def require_tolerance(rule: str, tolerance: object) -> None:
    """Asserts that ``tolerance`` is a number that an error can be compared with.

    Raises:
        PatternError: It is no number, negative, or NaN.
    """
    is_number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not is_number or not cast("float", tolerance) >= 0:
        raise PatternError(
            f"tolerance of {rule} is a number, 0 or more, how far an output may move relative to "
            f"its norm; got {tolerance!r}: leave it at 1e-4, or write 1e-3"
        )


def _needed(graft: Callable[..., object]) -> list[str]:
    """Returns the names of the arguments without which ``graft`` cannot be called."""
    try:
        parameters = inspect.signature(graft).parameters.values()
    except ValueError:
        return []  # made in C, and nobody can tell
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in variable
    ]


def _name_of(value: object) -> str:
    return str(getattr(value, "__name__", repr(value)))
