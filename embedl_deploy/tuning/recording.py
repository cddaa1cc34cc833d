"""Records the calls of a module: one graph per structure of inputs, with a few samples each."""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from threading import Lock
from typing import cast

from torch import Tensor
from torch.utils import _pytree as pytree

from embedl_deploy.tracing.structures import named_leaves, pack
from embedl_deploy.tuning.dimensions import DeclaredShapes, DynamicDim, declared_dims
from embedl_deploy.tuning.graph_spec import ConstantSpec, GraphSpec, SizesSeen, TensorSpec
from embedl_deploy.tuning.sample import Sample

MAX_SAMPLES = 8
"""Calls kept of each graph."""

MAX_GRAPHS = 16
"""Graphs kept of each module: one that gets a new constant with each call has no end of them."""


@dataclass(frozen=True)
class Snapshot:
    """One call before it ran."""

    sample: Sample
    key: GraphSpec
    shapes: tuple[tuple[int, ...], ...]
    declared: tuple[Mapping[int, DynamicDim], ...]


class RecordedGraph:
    """The calls with one structure of inputs."""

    def __init__(self, first: Snapshot) -> None:
        self._key = first.key
        self._sizes = SizesSeen(first.declared)
        self._shapes: list[tuple[tuple[int, ...], ...]] = []
        self.samples: list[Sample] = []
        self.calls = 0

    @property
    def spec(self) -> GraphSpec:
        """Structure and the sizes seen so far."""
        ranks = [tensor.rank for tensor in self._key.tensors]
        return GraphSpec(self._key.inputs, self._key.structure, self._sizes.ranges(ranks))

    def add(self, snapshot: Snapshot) -> None:
        """Counts a call, and keeps it while there is room or if its sizes are new."""
        self._sizes.add(snapshot.shapes)
        self.calls += 1
        if len(self.samples) >= MAX_SAMPLES and not self._make_room(snapshot):
            return
        self.samples.append(snapshot.sample)
        self._shapes.append(snapshot.shapes)

    def _make_room(self, snapshot: Snapshot) -> bool:
        """Drops a sample whose sizes another one has, for one with sizes of its own."""
        if snapshot.shapes in self._shapes:
            return False
        for position in range(len(self._shapes) - 1, 0, -1):
            if self._shapes.index(self._shapes[position]) < position:
                del self.samples[position], self._shapes[position]
                return True
        return False


class Recorder:
    """Collects calls from any number of threads."""

    def __init__(self, signature: inspect.Signature, declared: DeclaredShapes | None) -> None:
        self._signature = _without_annotations(signature)
        if declared is not None and not isinstance(cast("object", declared), Mapping):
            raise ValueError(
                "dynamic_shapes must be a dict by parameter of forward, such as "
                f"{{'x': {{0: BatchDim(1, 64)}}}}, got {declared!r:.80}"
            )
        self._declared = dict(declared or {})
        unknown = [name for name in self._declared if name not in signature.parameters]
        if unknown:
            raise ValueError(
                f"dynamic_shapes names {', '.join(unknown)}; forward has the parameters "
                f"{', '.join(signature.parameters)}"
            )
        self._graphs: dict[GraphSpec, RecordedGraph] = {}
        self._lock = Lock()
        self.left_out = 0
        """Calls with structures beyond the first ``MAX_GRAPHS``."""

    @property
    def graphs(self) -> list[RecordedGraph]:
        """The recorded graphs, in the order in which they were first seen."""
        with self._lock:
            return list(self._graphs.values())

    @property
    def declared(self) -> DeclaredShapes:
        """What was declared about sizes."""
        return self._declared

    def snapshot(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Snapshot | None:
        """Returns a copy of a call's arguments; None if they do not fit the signature."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            return None
        sample = _without_defaults(self._signature, bound).copied()
        bound.apply_defaults()
        arguments = {
            name: pack(value)[0]
            for name, value in cast("dict[str, object]", bound.arguments).items()
        }
        inputs, tensors, declared = self._inputs(arguments)
        structure = ", ".join(
            f"{name}: {pytree.tree_structure(value)}" for name, value in arguments.items()
        )
        shapes = tuple(tuple(int(size) for size in tensor.shape) for tensor in tensors)
        return Snapshot(sample, GraphSpec(inputs, structure), shapes, declared)

    def add(self, snapshot: Snapshot) -> None:
        """Files a call that ran.

        Raises:
            ValueError: A size lies outside its declared range.
        """
        with self._lock:
            graph = self._graphs.get(snapshot.key)
            if graph is None:
                if len(self._graphs) >= MAX_GRAPHS:
                    self.left_out += 1
                    return
                graph = RecordedGraph(snapshot)
                graph.add(snapshot)
                self._graphs[snapshot.key] = graph
                return
            graph.add(snapshot)

    def __deepcopy__(self, memo: dict[int, object]) -> "Recorder":
        result = Recorder(self._signature, self._declared)
        with self._lock:
            result._graphs = deepcopy(self._graphs, memo)
            result.left_out = self.left_out
        return result

    def __getstate__(self) -> dict[str, object]:
        with self._lock:
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def _inputs(
        self, arguments: Mapping[str, object]
    ) -> tuple[
        tuple[TensorSpec | ConstantSpec, ...], list[Tensor], tuple[Mapping[int, DynamicDim], ...]
    ]:
        inputs: list[TensorSpec | ConstantSpec] = []
        tensors: list[Tensor] = []
        declared: list[Mapping[int, DynamicDim]] = []
        for name, value in arguments.items():
            dims = declared_dims(self._declared, name, value)
            for (full, leaf), of_leaf in zip(named_leaves(value, name), dims, strict=True):
                if isinstance(leaf, Tensor):
                    inputs.append(TensorSpec(full, leaf.dtype, leaf.dim()))
                    tensors.append(leaf)
                    declared.append(of_leaf)
                else:
                    inputs.append(ConstantSpec(full, type(leaf).__name__, repr(leaf)))
        return tuple(inputs), tensors, tuple(declared)


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    """Returns the signature without classes that may not be importable in another process."""
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return inspect.Signature(parameters)


def _without_defaults(signature: inspect.Signature, bound: inspect.BoundArguments) -> Sample:
    """Returns the call spelled one way: in order while nothing is left out, then by keyword."""
    arguments = cast("dict[str, object]", bound.arguments)
    args: list[object] = []
    kwargs: dict[str, object] = {}
    has_rest = any(
        parameter.kind is parameter.VAR_POSITIONAL and arguments.get(name)
        for name, parameter in signature.parameters.items()
    )
    gap = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.extend(cast("tuple[object, ...]", arguments.get(name, ())))
            gap = True
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(cast("dict[str, object]", arguments.get(name, {})))
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if name in arguments and not _is_default(parameter, arguments[name]):
                kwargs[name] = arguments[name]
        else:
            value = arguments.get(name, parameter.default)
            can_omit = parameter.kind is not parameter.POSITIONAL_ONLY and not has_rest
            if can_omit and _is_default(parameter, value):
                gap = True
            elif gap:
                kwargs[name] = value
            else:
                args.append(value)
    return Sample(tuple(args), kwargs)


def _is_default(parameter: inspect.Parameter, value: object) -> bool:
    default: object = parameter.default
    if isinstance(value, Tensor):
        return False
    if value is default:
        return True
    plain = (bool, int, float, str)
    return isinstance(value, plain) and type(value) is type(default) and value == default
