"""Arithmetic on symbolic sizes, as text that may come from a file: checked before it runs."""

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType
from typing import cast


def _floor_to_int(value: float) -> int:
    return int(value // 1)


def _ceil_to_int(value: float) -> int:
    return -int(-value // 1)


def _all(*values: bool) -> bool:
    return all(values)


def _not(value: bool) -> bool:
    return not value


def _any(*values: bool) -> bool:
    return any(values)


def _largest(*values: int) -> int:
    return max(values)


def _smallest(*values: int) -> int:
    return min(values)


FUNCTIONS = cast(
    "Mapping[str, Callable[..., object]]",
    {
        "Eq": operator.eq,
        "Ne": operator.ne,
        "Mod": operator.mod,
        "PythonMod": operator.mod,
        "FloorDiv": operator.floordiv,
        "CleanDiv": operator.floordiv,
        "IntTrueDiv": operator.truediv,
        "Max": _largest,
        "Min": _smallest,
        "FloorToInt": _floor_to_int,
        "CeilToInt": _ceil_to_int,
        "Abs": abs,
        "And": _all,
        "Or": _any,
        "Not": _not,
    },
)
"""What an expression may call: the names sympy prints."""

_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.Name, ast.Load,
    ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.Pow, ast.USub,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.And, ast.Or, ast.Not, ast.BitAnd,
    ast.BitOr,
)  # fmt: skip

_LONGEST = 2000
_LARGEST_POWER = 8


@lru_cache(maxsize=4096)
def symbols_in(expression: str) -> tuple[str, ...]:
    """Returns the symbols of ``expression``, in order of appearance.

    Raises:
        ValueError: The text is more than arithmetic and comparisons of integers and symbols.
    """
    tree = _parse(expression)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called
    ]
    return tuple(dict.fromkeys(names))


def evaluate(expression: str, values: Mapping[str, int]) -> int | bool:
    """Returns the value of ``expression`` for the given symbols.

    Raises:
        ValueError: The text is not plain arithmetic, divides by zero, or a symbol has no value.
    """
    code = _compiled(expression)
    try:
        # The text holds nothing but what _parse admits: arithmetic, and calls of FUNCTIONS.
        result: object = eval(code, {"__builtins__": {}, **FUNCTIONS}, dict(values))
    except (ZeroDivisionError, NameError, TypeError, OverflowError) as error:
        raise ValueError(f"cannot compute {expression} for {dict(values)}: {error}") from error
    if not isinstance(result, (int, float)):
        raise ValueError(f"{expression} is no number for {dict(values)}")
    return result if isinstance(result, bool) else int(result)


def linear_in(expression: str) -> tuple[str, int, int] | None:
    """Returns (symbol, factor, offset) if ``expression`` is factor · symbol + offset, else None."""
    symbols = symbols_in(expression)
    if len(symbols) != 1:
        return None
    try:
        zero, one, far = (int(evaluate(expression, {symbols[0]: at})) for at in (0, 1, 1009))
    except ValueError:
        return None
    factor = one - zero
    if factor <= 0 or far != factor * 1009 + zero:
        return None
    return symbols[0], factor, zero


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> CodeType:
    return compile(_parse(expression), "<size>", "eval")


def _parse(expression: str) -> ast.Expression:
    if len(expression) > _LONGEST:
        raise ValueError(f"a size expression has {len(expression)} characters, over {_LONGEST}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an expression of sizes: {expression[:80]!r}") from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) or not _is_plain(node):
            raise ValueError(
                "an expression of sizes holds only integers, symbols, arithmetic and comparisons, "
                f"got {expression[:80]!r}"
            )
    return tree


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float))
    if isinstance(node, ast.Name):
        return not node.id.startswith("__")
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        return named and not node.keywords
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        exponent = node.right
        small = isinstance(exponent, ast.Constant) and isinstance(exponent.value, int)
        return small and 0 <= int(str(exponent.value)) <= _LARGEST_POWER  # type: ignore[union-attr]
    return True
