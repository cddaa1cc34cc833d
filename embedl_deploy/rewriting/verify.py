"""Checks a replacement against what it replaces, on random inputs, before it is wired in."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.evaluate import attribute_of, evaluate, sample_value
from embedl_deploy.graph.nodes import graph_module_of, shape_of, source_line
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.tensor_guard import TensorGuard, same_bits

Check = Callable[[PatternMatch, tuple[Node, ...], Mapping[Node, Node]], Refusal | None]
"""Given a match, the new nodes and what replaces what: why it must be taken back, or None."""

ROLLED_BACK = "rolled back"
"""How the reason of a replacement that failed its check begins."""

_LARGEST_REGION = 200
_NARROW = "size-1"

_MOST_SHOWN = 3
_NOTICEABLE = 0.1

COARSER = {torch.float16: 50.0, torch.bfloat16: 400.0}
"""How much more than float32 a dtype rounds: the pattern's tolerance grows by it."""


@dataclass(frozen=True)
class Verifier:
    """The check of single sites."""

    raises: bool = False
    """Whether a site that fails raises instead of being rolled back."""

    def __call__(
        self, match: PatternMatch, made: tuple[Node, ...], outputs: Mapping[Node, Node]
    ) -> Refusal | None:
        """Returns why a replacement must be taken back, None if it keeps its promise.

        Both sides run on the same random inputs of the recorded shapes and dtypes: once laid out
        as recorded, once non-contiguous, once with a first dimension of 1 where the replaced
        nodes can take that.

        Raises:
            VerificationError: ``raises`` is set and the replacement moved an output too far.
        """
        region = _region(match, made)
        if region is None:
            return None
        for kind, given in _samples(region):
            refusal = _compare(kind, given, region, match, made, outputs)
            if refusal is not None:
                if self.raises:
                    raise VerificationError(_message(match, refusal))
                return refusal
        return None


def _compare(
    kind: str,
    given: Mapping[Node, object],
    region: tuple[Node, ...],
    match: PatternMatch,
    made: tuple[Node, ...],
    outputs: Mapping[Node, Node],
) -> Refusal | None:
    seed = int(hashlib.sha256(match.root.name.encode()).hexdigest()[:8], 16)
    left = _clones(given)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            before = evaluate(region, left)
        except Exception:  # noqa: BLE001  # shapes that the model itself cannot take say nothing
            return None
        if kind == _NARROW and not _is_batch(before, outputs):
            return None
        taken = _clones({**before, **given})
        reads = (read for node in made for read in (node, *node.all_input_nodes))
        stored = TensorGuard(read for read in reads if read.op == "get_attr")
        try:
            torch.manual_seed(seed)
            after = evaluate(made, taken)
        except Exception as error:  # noqa: BLE001  # whatever it is, the replacement is at fault
            reason = f"{ROLLED_BACK}: on {kind} inputs the replacement raises {error}"
            return Refusal(reason, match.root)
        finally:
            changed = list(stored.changed())
    changed += [f"%{read.name}" for read in given if not _is_left(left[read], taken[read])]
    if changed:
        return _changed_input(kind, changed, match.root)
    known = {**before, **given, **after}
    pairs = {old: (before[old], known.get(new, _attribute(new))) for old, new in outputs.items()}
    return _moved_too_far(kind, match, pairs)


def _moved_too_far(
    kind: str, match: PatternMatch, pairs: Mapping[Node, tuple[object, object]]
) -> Refusal | None:
    """Returns which output moved too far, given what each was and what it became."""
    for old, (expected, found) in pairs.items():
        error, allowed = relative_error(found, expected), _allowed(match, expected)
        if not error <= allowed:
            return Refusal(
                f"{ROLLED_BACK}: on {kind} inputs the output moved by {error:.1e}, allowed "
                f"{allowed:.1e} ({shown_change(expected, found)})",
                old,
            )
    return None


def require_choice(verify: object) -> None:
    """Asserts that ``verify`` is one of the values that it may have.

    Raises:
        ValueError: It is none of them.
    """
    if isinstance(verify, bool) or (isinstance(verify, str) and verify == "raise"):
        return
    raise ValueError(
        f"verify is False, True (what is wrong is rolled back) or 'raise', got {verify!r}"
    )


def _is_left(before: object, after: object) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return same_bits(before, after)
    return True


def _changed_input(kind: str, changed: list[str], root: Node) -> Refusal:
    return Refusal(
        f"{ROLLED_BACK}: on {kind} inputs the replacement changes what it reads, "
        f"{', '.join(changed)}, in place, and others may read that too: build it without in-place "
        "operations (relu, not relu_; nn.ReLU(inplace=False))",
        root,
    )


def _attribute(node: Node) -> object:
    return attribute_of(graph_module_of(node), str(node.target)) if node.op == "get_attr" else None


def _is_batch(before: Mapping[Node, object], outputs: Mapping[Node, Node]) -> bool:
    """Tells whether inputs of one row gave results of one row, otherwise as recorded.

    Where they did not, the first dimensions of the inputs are none that may vary, and the
    operation only took them because it broadcasts.
    """
    for old in outputs:
        found, recorded = before[old], shape_of(old)
        if not isinstance(found, Tensor) or not recorded:
            continue
        rest = zip(found.shape[1:], recorded[1:], strict=False)
        if found.shape[0] != 1 or any(isinstance(b, int) and a != b for a, b in rest):
            return False
    return True


def _allowed(match: PatternMatch, expected: object) -> float:
    dtype = expected.dtype if isinstance(expected, Tensor) else torch.float32
    return match.pattern.tolerance * COARSER.get(dtype, 1.0)


def _region(match: PatternMatch, made: tuple[Node, ...]) -> tuple[Node, ...] | None:
    """Returns the nodes whose values say whether the replacement is right.

    These are the match's own and, where the replacement reads further up than the match, those in
    between. None where these are too many: then the check of the whole graph must do.
    """
    new = set(made)
    extra = {read for node in made for read in node.all_input_nodes if read.op != "get_attr"} - new
    region = dict.fromkeys(match.nodes)
    while True:
        given = _given(region)
        missing = [read for read in extra if read not in region and read not in given]
        if not missing:
            return tuple(sorted(region))
        highest = min(missing)
        between = [read for read in given if highest < read and read not in extra]
        if not between or len(region) > _LARGEST_REGION:
            return None
        region.update(dict.fromkeys(between))


def _given(region: Iterable[Node]) -> dict[Node, None]:
    reads = {read: None for node in region for read in node.all_input_nodes}
    return {read: None for read in reads if read.op != "get_attr" and read not in region}


def _samples(region: tuple[Node, ...]) -> Iterator[tuple[str, Mapping[Node, object]]]:
    inputs = _given(dict.fromkeys(region))
    generator = torch.Generator().manual_seed(len(inputs))
    given = {read: sample_value(read, generator) for read in inputs}
    yield "plain", given
    yield "non-contiguous", {read: _map(value, _strided) for read, value in given.items()}
    narrow = {read: _map(value, _first_of_one) for read, value in given.items()}
    if any(value is not given[read] for read, value in narrow.items()):
        yield _NARROW, narrow


def _clones(given: Mapping[Node, object]) -> dict[Node, object]:
    """Returns copies with equal strides, so that an in-place operation spoils nothing."""
    return {read: _map(value, _clone) for read, value in given.items()}


def _clone(value: Tensor) -> Tensor:
    """Returns a copy with the strides of ``value``; ``torch.clone`` would close the gaps."""
    if value.numel() == 0 or 0 in value.stride():
        return value.clone()
    reach = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    made = value.new_zeros(reach + 1).as_strided(value.shape, value.stride())
    return made.copy_(value)


def _map(value: object, change: Callable[[Tensor], Tensor]) -> object:
    return change(value) if isinstance(value, Tensor) else value


def _strided(value: Tensor) -> Tensor:
    if value.dim() == 0:
        return value
    wide = value.new_empty((*value.shape[:-1], value.shape[-1] * 2))
    wide[..., ::2] = value
    return wide[..., ::2]


def _first_of_one(value: Tensor) -> Tensor:
    return value[:1] if value.dim() > 1 and value.shape[0] > 1 else value


def shown_change(before: object, after: object) -> str:
    """Returns the first elements in which two tensors differ, by index, for messages."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return f"{_shown(before)} became {_shown(after)}"
    old, new = before.detach(), after.detach()
    if old.shape != new.shape or old.numel() < 2:
        return f"{_shown(old)} became {_shown(new)}"
    gap = (old.double() - new.double()).abs().nan_to_num(float("inf"))
    # Rounding moves every element: what counts is what moved about as far as anything did.
    moved = (gap >= gap.max() * _NOTICEABLE).nonzero()
    listed = cast("list[list[int]]", moved[:_MOST_SHOWN].tolist())
    places = ", ".join(map(str, listed))
    rest = f" and {len(moved) - _MOST_SHOWN} more" if len(moved) > _MOST_SHOWN else ""
    first = tuple(moved.T)
    return f"{places}{rest}: {_shown(old[first])} became {_shown(new[first])}"


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    flat = cast("list[float]", value.detach().flatten()[:_MOST_SHOWN].tolist())
    shown = ", ".join(f"{item:.4g}" for item in flat)
    return f"[{shown}, …]" if value.numel() > len(flat) else f"[{shown}]"


def _message(match: PatternMatch, refusal: Refusal) -> str:
    where = source_line(match.root) or "no source line recorded"
    return f"{match.pattern.name} at %{match.root.name} ({where}): {refusal.reason}"
