"""What the class of a rule defines, and what it may have meant to."""

import inspect
from collections.abc import Iterator
from difflib import get_close_matches

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting.tree import Tree

_METHODS = {"check": 2, "replace": 2, "match": 3, "decline": 2, "anchors": 1}
"""What a rule may override, and how many arguments each takes, ``self`` included."""

_VALUES = {
    "tree": Tree,
    "roots": (tuple, list),
    "outputs": (tuple, list),
    "qdq_points": (tuple, list),
    "tolerance": (int, float),
}

_CLOSE = 0.75
"""From which likeness on a name is taken for a misspelling."""


def require_known_names(rule: str, kind: type, base: type) -> None:
    """Asserts that a rule defines nothing that looks like a misspelt attribute of ``base``.

    Raises:
        PatternError: It does; an attribute that the engine never reads would do nothing.
    """
    for name, value in _defined(kind, base):
        meant = _meant(name, value)
        if meant is not None and _definer(kind, meant) is base:
            raise PatternError(
                f"{rule} defines {name!r}, which the engine never reads, and no {meant!r}: call it "
                f"{meant!r}, or _{name} if it is a helper of yours"
            )


def require_one_way(rule: str, kind: type, base: type) -> None:
    """Asserts that a rule does not say twice what to look for or what to put there.

    Raises:
        PatternError: It does, and one of both would be passed over.
    """
    order = kind.__mro__
    graft, replace = _definer(kind, "graft"), _definer(kind, "replace")
    is_set: bool = getattr(kind, "graft", None) is not None
    if is_set and replace is not base and order.index(graft) <= order.index(replace):
        raise PatternError(
            f"{rule} defines replace() and graft, and replace() alone would run: leave one out"
        )
    searches = _definer(kind, "match") is not base
    if not searches and getattr(kind, "tree", None) is not None and getattr(kind, "roots", ()):
        raise PatternError(
            f"{rule} sets tree and roots, and the tree alone says where a match may end: leave "
            "roots out, which is for a rule that overrides match()"
        )


def _defined(kind: type, base: type) -> Iterator[tuple[str, object]]:
    """Yields the public attributes that a rule has beyond those of ``base``."""
    for owner in kind.__mro__:
        if owner is base or not issubclass(owner, base):
            continue
        for name, value in vars(owner).items():
            if not name.startswith("_") and not hasattr(base, name) and name != "phase":
                yield name, value


def _meant(name: str, value: object) -> str | None:
    """Returns what an attribute may have been meant to be, None if nothing."""
    if inspect.isfunction(value):
        count = len(inspect.signature(value).parameters)
        likely = [method for method, takes in _METHODS.items() if takes == count]
        likely += ["graft"] if count == 0 else []
    else:
        likely = [known for known, kinds in _VALUES.items() if isinstance(value, kinds)]
    near = get_close_matches(name, likely, n=1, cutoff=_CLOSE)
    return near[0] if near else None


def _definer(kind: type, name: str) -> type:
    return next(owner for owner in kind.__mro__ if name in vars(owner))
