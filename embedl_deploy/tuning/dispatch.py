"""The ``forward`` of a tuned module: each graph's own guards decide, in turn, who runs a call."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import cast

from embedl_deploy.lowering import LoweredModule
from embedl_deploy.lowering.binding import write_forward
from embedl_deploy.tracing.structures import pack, unpack

Forward = Callable[..., object]


class EagerCalls:
    """How many calls of a tuned module ran eager, since no graph takes them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0

    def add(self) -> None:
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        return self._count


def tuned_forward(models: Sequence[LoweredModule], eager: Forward, counts: EagerCalls) -> Forward:
    """Returns what runs a call by the first model whose guards admit it, else eager, counted.

    Args:
        models: One per graph; what they admit does not overlap.
        eager: The module's own ``forward``.
        counts: Where calls that ran eager are counted.
    """

    def run_eager(*args: object, **kwargs: object) -> object:
        counts.add()
        return eager(*args, **kwargs)

    def missed(*_args: object, **_kwargs: object) -> object:
        return _MISS

    plain = _chain(models, missed)

    def take_apart(*args: object, **kwargs: object) -> object:
        packed, template = pack((args, kwargs))
        if template is None:
            return run_eager(*args, **kwargs)
        standin = cast("tuple[tuple[object, ...], dict[str, object]]", packed)
        found = plain(*standin[0], **standin[1])
        return run_eager(*args, **kwargs) if found is _MISS else found

    return _chain(models, take_apart)


class _Elsewhere:
    """An output that another graph made, which is complete as it is."""

    def __init__(self, output: object) -> None:
        self.output = output


_MISS = object()


def _chain(models: Sequence[LoweredModule], last: Forward) -> Forward:
    following = last
    for model in reversed(models):
        following = _link(model, following)
    return following


def _link(model: LoweredModule, following: Forward) -> Forward:
    """Returns the model's generated ``forward`` with ``following`` behind its guards."""
    core = model.assembly.core
    run, _ = model.assembly.runner(model.report.fallback_counts, model.fallback)
    template = core.template
    if template is None:

        def go_on(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
            return following(*args, **kwargs)

        return write_forward(core.signature, run, go_on)[0]

    def leave(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return _Elsewhere(following(*args, **kwargs))

    written, _ = write_forward(core.signature, run, leave)

    def rebuilding(*args: object, **kwargs: object) -> object:
        output = written(*args, **kwargs)
        return output.output if isinstance(output, _Elsewhere) else unpack(output, template)

    return rebuilding
