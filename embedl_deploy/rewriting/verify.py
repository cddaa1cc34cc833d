"""Checks a replacement against what it replaces, on random inputs, before it is wired in."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.evaluate import evaluate, sample_value
from embedl_deploy.graph.nodes import source_line
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal

Check = Callable[[PatternMatch, tuple[Node, ...], Mapping[Node, Node]], Refusal | None]
"""Given a match, the new nodes and what replaces what: why it must be taken back, or None."""

_COARSER = {torch.float16: 50.0, torch.bfloat16: 400.0}
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
        for kind, given in _samples(match):
            refusal = _compare(kind, given, match, made, outputs)
            if refusal is not None:
                if self.raises:
                    raise VerificationError(_message(match, refusal))
                return refusal
        return None


def _compare(
    kind: str,
    given: Mapping[Node, object],
    match: PatternMatch,
    made: tuple[Node, ...],
    outputs: Mapping[Node, Node],
) -> Refusal | None:
    seed = int(hashlib.sha256(match.root.name.encode()).hexdigest()[:8], 16)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            before = evaluate(match.nodes, _clones(given))
        except Exception:  # noqa: BLE001  # shapes that the model itself cannot take say nothing
            return None
        try:
            torch.manual_seed(seed)
            after = {**given, **evaluate(made, _clones(given))}
        except Exception as error:  # noqa: BLE001  # whatever it is, the replacement is at fault
            return Refusal(f"the replacement fails on {kind} inputs: {error}", match.root)
    for old, new in outputs.items():
        expected, found = before[old], after.get(new, before.get(new))
        error, allowed = relative_error(found, expected), _allowed(match, expected)
        if error > allowed:
            return Refusal(
                f"rolled back: on {kind} inputs the output moved by {error:.1e}, allowed "
                f"{allowed:.1e} ({_shown(expected)} became {_shown(found)})",
                old,
            )
    return None


def _allowed(match: PatternMatch, expected: object) -> float:
    dtype = expected.dtype if isinstance(expected, Tensor) else torch.float32
    return match.pattern.tolerance * _COARSER.get(dtype, 1.0)


def _samples(match: PatternMatch) -> Iterator[tuple[str, Mapping[Node, object]]]:
    inputs = [read for read in match.inputs if read.op != "get_attr"]
    generator = torch.Generator().manual_seed(len(inputs))
    given = {read: sample_value(read, generator) for read in inputs}
    yield "plain", given
    yield "non-contiguous", {read: _map(value, _strided) for read, value in given.items()}
    narrow = {read: _map(value, _first_of_one) for read, value in given.items()}
    if any(value is not given[read] for read, value in narrow.items()):
        yield "size-1", narrow


def _clones(given: Mapping[Node, object]) -> dict[Node, object]:
    """Returns copies with equal strides, so that an in-place operation spoils nothing."""
    return {read: _map(value, torch.clone) for read, value in given.items()}


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


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    flat = value.detach().flatten()[:3].tolist()
    shown = ", ".join(f"{item:.4g}" for item in flat)
    return f"[{shown}, …]" if value.numel() > len(flat) else f"[{shown}]"


def _message(match: PatternMatch, refusal: Refusal) -> str:
    where = source_line(match.root) or "no source line recorded"
    return f"{match.pattern.name} at %{match.root.name} ({where}): {refusal.reason}"
