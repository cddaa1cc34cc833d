# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Rewrites a model with the patterns of a backend: plan, veto, apply."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.errors import PreconditionError, VerificationError
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.record import record_of
from embedl_deploy.rewriting import (
    Pattern,
    PatternMatch,
    TransformationPlan,
    TransformationReport,
    apply_plan,
    make_plan,
)
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.pattern import instances
from embedl_deploy.rewriting.selection import Selection
from embedl_deploy.rewriting.state_map import state_map
from embedl_deploy.rewriting.verify import require_choice
from embedl_deploy.tracing import trace
from embedl_deploy.tracing.faithful import unfaithful

Patterns = Sequence[type[Pattern] | Pattern]


@dataclass(frozen=True)
class TransformationResult:
    """What ``transform`` returns."""

    model: GraphModule
    """The rewritten model: same inputs, same outputs, the original's parameters."""

    report: TransformationReport
    """What was applied, and what was left alone and why."""

    matches: tuple[PatternMatch, ...]
    """Every match of a whole tree, in the order in which it was settled."""

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Loads weights of the original model into the rewritten one.

        Parameters that rewrites folded, split or merged are computed again, as ``report.key_map``
        lists them. The original model keeps its weights: what was shared is copied first. The
        same as ``model.load_state_dict``.

        Args:
            state: The ``state_dict`` of the original model, or of the rewritten one.
            strict: Whether each key must be there, and no other.

        Raises:
            RuntimeError: Keys are missing or unexpected, or a shape differs; all are named.
            PlanError: A rewrite that depends on the weights does not fit these.
        """
        self.model.load_state_dict(state, strict=strict)


def transform(
    model: nn.Module | ExportedProgram,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    patterns: Patterns | None = None,
    backend: str | Backend | None = None,
    dynamic_shapes: object | None = None,
    copy: bool = False,
    tracer: Literal["auto", "export", "fx"] = "auto",
    verify: bool | Literal["raise"] = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> TransformationResult:
    """Traces ``model`` and rewrites it with the conversions and fusions of a backend.

    The model itself is not changed; the result shares its parameters unless ``copy`` is set.

    Args:
        model: A module in eval mode, an exported program or its module, a loaded ``.pt2``, the
            output of ``torch.fx.symbolic_trace``, or a result of an earlier stage.
        args: Example inputs, as a tuple. None only where the model carries its own.
        kwargs: Example keyword inputs.
        patterns: The patterns to apply, in place of the backend's.
        backend: A backend or its name; the active one if None.
        dynamic_shapes: As for ``torch.export.export``.
        copy: Whether the result gets parameters of its own.
        tracer: ``"export"`` traces with torch.export, ``"fx"`` with torch.fx; ``"auto"`` falls
            back from the first to the second and the report says so.
        verify: Whether to check each match on its own subgraph and the model after each stage; a
            site that moves its output too far is rolled back, or raises with ``"raise"``. The
            traced graph is compared with the model too: the report notes where they differ.
        only: What to rewrite, everything if empty: names of stages, and globs for names of
            patterns (``"fuse-*"``) or paths of the model's modules (``"encoder.*"``).
        skip: What to leave alone, written likewise.

    Raises:
        ValueError: A word of ``only`` or ``skip`` means nothing in this model, or ``verify`` is
            none of its choices.
        TracingError: The model cannot be traced.
        PreconditionError: The model is in training mode.
        RuntimeError: Neither ``patterns`` nor ``backend`` is given and no backend is active.
        VerificationError: ``verify="raise"`` and a rewrite moved an output too far, or the traced
            graph computes something else than the model.
    """
    require_choice(verify)
    chosen, name = _patterns(patterns, backend)
    traced = _traced(model, args, kwargs, dynamic_shapes, tracer, copy=copy)
    if verify and not isinstance(model, (ExportedProgram, GraphModule)):
        _require_faithful(model, traced, args or (), kwargs, raises=verify == "raise")
    plan = _planned(traced, chosen, name, only, skip, careful=bool(verify))
    return apply_transformation_plan(plan, args, kwargs, verify=verify)


def get_transformation_plan(
    model: nn.Module | ExportedProgram,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    patterns: Patterns | None = None,
    backend: str | Backend | None = None,
    dynamic_shapes: object | None = None,
    copy: bool = False,
    tracer: Literal["auto", "export", "fx"] = "auto",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> TransformationPlan:
    """Returns every rewrite that ``transform`` would make, open to veto; changes nothing.

    Args and errors are those of ``transform``.
    """
    chosen, name = _patterns(patterns, backend)
    traced = _traced(model, args, kwargs, dynamic_shapes, tracer, copy=copy)
    return _planned(traced, chosen, name, only, skip)


def apply_transformation_plan(
    plan: TransformationPlan,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    verify: bool | Literal["raise"] = False,
) -> TransformationResult:
    """Applies what ``plan`` holds and was not vetoed.

    Args:
        plan: The plan.
        args: Example inputs on which ``verify`` runs the whole model; random ones if neither
            these nor ``kwargs`` are given.
        kwargs: Example keyword inputs.
        verify: As for ``transform``.

    Raises:
        VerificationError: ``verify="raise"`` and a rewrite moved an output too far.
    """
    matches = tuple(plan.sites())
    model, report = apply_plan(plan, verify=verify, args=args, kwargs=kwargs)
    record_of(model).loader = state_map(plan.model, model, plan.stages, report.passes)
    return TransformationResult(model, report, matches)


def _require_faithful(
    model: nn.Module,
    traced: GraphModule,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    *,
    raises: bool,
) -> None:
    """Notes in the report, or raises, if the traced graph computes something else."""
    reason = unfaithful(model, traced, args, kwargs)
    if reason is not None and raises:
        raise VerificationError(reason)
    if reason is not None:
        record_of(traced).notes.append(reason)


def _planned(
    traced: GraphModule,
    patterns: Patterns,
    backend: str | None,
    only: Sequence[str],
    skip: Sequence[str],
    *,
    careful: bool = False,
) -> TransformationPlan:
    if isinstance(only, str) or isinstance(skip, str):
        raise ValueError(f"only and skip are lists of words, got {only!r} and {skip!r}")
    if not only and not skip:
        return make_plan(traced, patterns, backend, careful=careful)
    selection = Selection(tuple(only), tuple(skip))
    selection.require_known(traced, instances(patterns))
    return make_plan(traced, patterns, backend, careful=careful, gate=selection)


def _patterns(
    patterns: Patterns | None, backend: str | Backend | None
) -> tuple[Patterns, str | None]:
    if patterns is not None and backend is None:
        return patterns, None
    chosen = resolve_backend(backend)
    if patterns is not None:
        return patterns, chosen.name
    return (*chosen.conversion_patterns, *chosen.fusion_patterns), chosen.name


def _traced(
    model: nn.Module | ExportedProgram,
    args: tuple[object, ...] | None,
    kwargs: Mapping[str, object] | None,
    dynamic_shapes: object | None,
    tracer: Literal["auto", "export", "fx"],
    *,
    copy: bool,
) -> GraphModule:
    _require_eval(model)
    traced = trace(model, args, kwargs, dynamic_shapes=dynamic_shapes, tracer=tracer, copy=copy)
    _require_eval_layers(traced)
    return traced


def _require_eval(model: object) -> None:
    traced_elsewhere = isinstance(model, (ExportedProgram, GraphModule))
    if isinstance(model, nn.Module) and model.training and not traced_elsewhere:
        raise PreconditionError(
            f"transform needs a model in eval mode, got {type(model).__name__} in training mode: "
            "call model.eval() first; call .train() on the result for quantization-aware training"
        )


def _require_eval_layers(traced: GraphModule) -> None:
    """Refuses programs that were exported in training mode: their norms use batch statistics."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for node in traced.graph.nodes:
        module = module_of(node)
        if isinstance(module, norms) and module.training:
            raise PreconditionError(
                f"transform needs a model in eval mode, but {node.target} "
                f"({type(module).__name__}) was traced in training mode: export the model after "
                "model.eval()"
            )
