"""Compares whole graphs on the same inputs."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_leaves, tree_map_only

from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.evaluate import sample_value
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.rewriting.verify import COARSER, shown_change

_DOUBLE_TOLERANCE = 1e-9
"""What rounding in float64 may move an output by, relative to its norm."""


@dataclass(frozen=True)
class Moved:
    """How far a graph's outputs lie from a reference."""

    error: float
    """Largest relative error of an output; infinite if the graph does not run."""

    allowed: float
    """What was allowed."""

    values: str
    """The first numbers of the output that moved most, before and after."""

    overflows: bool = False
    """Whether an output holds infinities or NaNs of a kind that the reference has none of."""

    @property
    def too_far(self) -> bool:
        """Whether the error is beyond what was allowed."""
        return not self.error <= self.allowed

    def __str__(self) -> str:
        return f"moved by {self.error:.1e}, allowed {self.allowed:.1e} ({self.values})"


class ModelCheck:
    """The outputs of a graph on given inputs, to compare rewritten graphs with.

    Args:
        reference: The graph whose outputs count.
        args: Inputs; if neither these nor ``kwargs`` are given, random ones of the recorded
            shapes and dtypes.
        kwargs: Keyword inputs.
    """

    def __init__(
        self,
        reference: GraphModule,
        args: tuple[object, ...] | None = None,
        kwargs: Mapping[str, object] | None = None,
    ) -> None:
        self.reference = reference
        self.args = args
        self.kwargs = kwargs
        self.only_zeros = False
        self.wanted = tree_leaves(_detached(self._reference_outputs()))

    def _reference_outputs(self) -> object:
        """Runs the reference; where random integers are no valid indices, on zeros."""
        try:
            return self._run(self.reference)
        except Exception as error:
            if self.args is not None or self.kwargs is not None:
                raise
            first = error
        self.only_zeros = True
        try:
            return self._run(self.reference)
        except Exception as error:
            raise PreconditionError(
                "verification needs inputs that the model takes: random ones of the recorded "
                f"shapes and dtypes fail ({type(first).__name__}: {first}); pass args and kwargs"
            ) from error

    def moved(self, graph_module: GraphModule, tolerance: float) -> Moved:
        """Returns how far the outputs of ``graph_module`` lie from the reference's.

        ``tolerance`` is for float32; it grows with the rounding of coarser dtypes.
        """
        allowed = tolerance * max((_coarseness(leaf) for leaf in self.wanted), default=1.0)
        try:
            found = tree_leaves(self._run(graph_module))
        except Exception as error:  # noqa: BLE001  # a wrong rewrite may fail in any way
            return Moved(float("inf"), allowed, f"it fails: {type(error).__name__}: {error}")
        if len(found) != len(self.wanted):
            return Moved(float("inf"), allowed, f"{len(self.wanted)} outputs became {len(found)}")
        pairs = list(zip(found, self.wanted, strict=True))
        errors = [relative_error(got, want) for got, want in pairs]
        if not errors:
            return Moved(0.0, allowed, "no outputs")
        worst = max(range(len(errors)), key=errors.__getitem__)
        got, want = pairs[worst]
        overflows = any(_overflows(got, want) for got, want in pairs)
        return Moved(errors[worst], allowed, shown_change(want, got), overflows)

    def agrees_in_double(self, graph_module: GraphModule) -> bool:
        """Tells whether the difference is rounding alone, which the model itself makes large.

        Models that choose by top-k or argmax turn rounding into other outputs; in float64 a
        right rewrite then agrees and a wrong one does not. An overflow agrees there too: see
        ``Moved.overflows``.
        """
        try:
            ours, theirs = _doubled(graph_module), _doubled(self.reference)
            error = relative_error(self._run(ours, double=True), self._run(theirs, double=True))
        except Exception:  # noqa: BLE001  # a model may hold casts that do not admit float64
            return False
        return error <= _DOUBLE_TOLERANCE

    def _run(self, graph_module: GraphModule, *, double: bool = False) -> object:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.args is None and self.kwargs is None:
                return self._run_on_random(graph_module, double=double)
            args, kwargs = _clones((self.args or (), dict(self.kwargs or {})), double=double)
            runnable = graph_module
            if isinstance(graph_module, TracedModule) and graph_module.deferred:
                runnable = structural_copy(graph_module)
            return runnable(*args, **kwargs)

    def _run_on_random(self, graph_module: GraphModule, *, double: bool) -> object:
        generator = torch.Generator().manual_seed(0)
        inputs = [
            sample_value(node, generator)
            for node in self.reference.graph.nodes
            if node.op == "placeholder"
        ]
        if self.only_zeros:
            inputs = [_zeros(value) for value in inputs]
        values, _ = _clones((tuple(inputs), {}), double=double)
        return Interpreter(graph_module).run(*values, enable_io_processing=False)


def _overflows(found: object, wanted: object) -> bool:
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        return False
    kinds = (torch.isnan, torch.isposinf, torch.isneginf)
    return any(bool(kind(found).any()) and not bool(kind(wanted).any()) for kind in kinds)


def _zeros(value: object) -> object:
    if not isinstance(value, Tensor) or value.is_floating_point():
        return value
    return torch.zeros_like(value)


def _clones(
    given: tuple[tuple[object, ...], dict[str, object]], *, double: bool
) -> tuple[tuple[object, ...], dict[str, object]]:
    def clone(value: Tensor) -> Tensor:
        copied = value.detach().clone()
        return copied.double() if double and copied.is_floating_point() else copied

    return tree_map_only(Tensor, clone, given)


def _detached(outputs: object) -> object:
    return tree_map_only(Tensor, lambda value: value.detach().clone(), outputs)


def _doubled(graph_module: GraphModule) -> GraphModule:
    doubled = copy.deepcopy(graph_module).double()
    return doubled.finish() if isinstance(doubled, TracedModule) else doubled


def _coarseness(leaf: object) -> float:
    return COARSER.get(leaf.dtype, 1.0) if isinstance(leaf, Tensor) else 1.0
