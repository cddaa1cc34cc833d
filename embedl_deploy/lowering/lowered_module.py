"""The model that lowering returns: the same calls, run by engines."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Self, cast

from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import LoweringError
from embedl_deploy.lowering.assembly import Assembly
from embedl_deploy.lowering.binding import write_forward
from embedl_deploy.lowering.guards import explain, python_signature
from embedl_deploy.lowering.report import FallbackCounts, LoweringReport
from embedl_deploy.lowering.settings import Terms
from embedl_deploy.tracing.structures import Template, pack, unpack


class LoweredModule(nn.Module):
    """Computes what the model computes, each subgraph by the engine that was built for it.

    Takes and returns what the model does: positional and keyword arguments, defaults, nested
    containers. Inputs outside of what the graph was declared to take raise ``InputError``;
    inside it, a subgraph whose engine fails runs eager, counted in ``report.fallbacks``.

    For inference only. Several threads may call it at once. A copy shares the engines.
    ``state_dict`` holds the weights of the graph that was lowered; engines have their own.
    """

    report: LoweringReport
    """What was lowered to what, and why the rest was not."""

    generated_source: str
    """The source text of ``forward``, written for this model's inputs."""

    terms: Terms
    """What it was lowered to keep to."""

    def __init__(
        self, assembly: Assembly, report: LoweringReport, terms: Terms | None = None
    ) -> None:
        super().__init__()
        self.report = report
        self.terms = terms or Terms()
        own = self.__dict__
        own["_assembly"] = assembly
        # The graph's parameters, under its own names, so that state_dict() has them.
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            own[name].update(assembly.core.module.__dict__[name])
        run, own["_stitched"] = assembly.runner(report.fallback_counts, self.fallback)
        written, self.generated_source = write_forward(
            assembly.core.signature, run, self._without_classes
        )
        own["forward"] = _rebuilding(written, assembly.core.template)
        super().train(False)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Runs the model; every instance replaces this by code written for its signature."""
        written: Callable[..., object] = self.__dict__["forward"]
        return written(*args, **kwargs)

    @property
    def fallback(self) -> bool:
        """Whether a subgraph runs eager where its engine fails."""
        return self.terms.fallback

    @property
    def assembly(self) -> Assembly:
        """The graph, how it was cut, and the engines."""
        return self.__dict__["_assembly"]

    @property
    def stitched_graph(self) -> GraphModule | None:
        """The graph of engine calls and eager nodes; None where one engine runs everything."""
        return self.__dict__["_stitched"]

    @property
    def signature(self) -> inspect.Signature:
        """Returns the signature of the model's own ``forward``."""
        return python_signature(self.assembly.core.signature)

    def save(self, path: str | Path) -> None:
        """Writes graph, weights and engines into one file; see ``load_lowered``.

        With ``fallback=False`` weights that only engines read are left out where the engines hold
        them: a model that is loaded again has tensors without values in their place, and its
        engines cannot be built anew.

        Raises:
            CheckpointError: Something in the model cannot be written as data.
            OutputPathError: The file cannot be written.
        """
        from embedl_deploy.lowering.checkpoint import save_lowered

        save_lowered(self, Path(path))

    def train(self, mode: bool = True) -> Self:
        """Does nothing for ``mode=False``.

        Raises:
            LoweringError: ``mode`` is True.
        """
        if mode:
            raise LoweringError(
                "a lowered model only runs inference: train the graph it was lowered from"
            )
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Lets ``.to()`` and its kin pass where they change nothing."""
        del recurse
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_meta:
                continue  # held by an engine alone
            probe = tensor.detach().flatten()[:0]
            moved = fn(probe)
            if moved.dtype is not probe.dtype or moved.device != probe.device:
                raise LoweringError(
                    f"a lowered model stays {probe.dtype} on {probe.device}, where its engines "
                    f"were built; asked for {moved.dtype} on {moved.device}: convert the model "
                    "and lower it again"
                )
        return self

    def load_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]  # it never returns
        self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False
    ) -> object:
        """Refuses: engines hold weights of their own.

        Raises:
            LoweringError: Always.
        """
        del state_dict, strict, assign
        raise LoweringError(
            "the engines of a lowered model hold their own copy of the weights: load them into "
            "the graph and lower it again"
        )

    def _without_classes(self, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Takes apart inputs of classes that pytree does not know, or says why a guard failed."""
        packed, template = pack((tuple(args), dict(kwargs)))
        plain = cast("tuple[tuple[object, ...], dict[str, object]]", packed)
        error = explain(self.assembly.core.signature, *plain)
        if error is not None:
            raise error
        if template is None:
            raise LoweringError("a guard failed on an input that fits: please report this")
        written: Callable[..., object] = self.__dict__["forward"]
        return getattr(written, "__wrapped__", written)(*plain[0], **plain[1])

    def __deepcopy__(self, memo: dict[int, object]) -> "LoweredModule":
        report = replace(self.report, fallback_counts=FallbackCounts())
        result = LoweredModule(self.assembly.copied(memo), report, self.terms)
        memo[id(self)] = result
        return result

    def __reduce__(self) -> str:
        raise LoweringError("a lowered model is not pickled: use model.save(path)")

    def extra_repr(self) -> str:
        engines = self.report.engines
        lines = [f"{name}: {engine}" for name, engine in engines.items()]
        lines.append(f"eager: {len(self.report.eager_nodes)} nodes")
        return "\n".join(lines)


def _rebuilding(written: Callable[..., object], template: Template | None) -> Callable[..., object]:
    """Returns ``written``, or where outputs are of classes of the user's, what rebuilds them."""
    if template is None:
        return written

    @wraps(written)
    def forward(*args: object, **kwargs: object) -> object:
        return unpack(written(*args, **kwargs), template)

    return forward
