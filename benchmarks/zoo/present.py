"""Counts what could be fused in a model by watching it run; shares nothing with the matcher."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

GROUPS = ("attention", "conv_norm", "conv_norm_activation", "linear_activation")

_KINDS = {
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "norm": "batch_norm",
    "linear": "linear addmm",
    "matmul": "matmul bmm baddbmm einsum __matmul__ __rmatmul__",
    "softmax": "softmax",
    "attention": "scaled_dot_product_attention multi_head_attention_forward",
    "activation": (
        "relu relu_ relu6 gelu silu silu_ hardswish hardsigmoid hardtanh hardtanh_ sigmoid "
        "sigmoid_ tanh tanh_ leaky_relu leaky_relu_ elu elu_ mish softplus prelu selu celu"
    ),
    "pass": (
        "dropout add __add__ __radd__ __iadd__ add_ sub __sub__ mul __mul__ __rmul__ __imul__ "
        "mul_ div __truediv__ masked_fill masked_fill_ where view reshape flatten unflatten to "
        "type_as float unsqueeze squeeze clamp __getitem__ contiguous transpose permute expand "
        "expand_as max maximum clip"
    ),
    "silent": "__get__ __set__ size dim numel is_floating_point",
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_SPELLED_BY_HAND = ("gelu", "silu", "swish", "mish")
"""Words in the class names of modules that are activations, whatever operations they call."""


@dataclass
class _Event:
    """One call that made a tensor."""

    kind: str
    path: str
    sources: tuple["_Event | None", ...]
    readers: list["_Event"] = field(default_factory=list["_Event"])


class _Watcher(TorchFunctionMode):
    """Records, for every tensor, the call that made it and the calls that read it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.events: list[_Event] = []
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = [""]
        self._silent = 0
        self._made: dict[int, tuple[weakref.ref[Tensor], _Event]] = {}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        result = func(*args, **(kwargs or {}))
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        kind = _KIND_OF.get(name, "other")
        if kind != "silent" and not self._silent:
            self._record(kind, (args, kwargs or {}), result)
        return result

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Follows which module runs."""
        hooks = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, inputs: object) -> None:
        del inputs
        self._stack.append(self._names.get(id(module), self._stack[-1]))
        self._silent += _is_activation(module)

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        if _is_activation(module):
            self._silent -= 1
            if not self._silent:
                self._record("activation", inputs, output)
        self._stack.pop()

    def _record(self, kind: str, inputs: object, result: object) -> None:
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        event = _Event(kind, self._stack[-1], tuple(self._event_of(tensor) for tensor in tensors))
        for source in event.sources:
            if source is not None:
                source.readers.append(event)
        self.events.append(event)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._made[id(leaf)] = (weakref.ref(leaf), event)

    def _event_of(self, tensor: Tensor) -> _Event | None:
        alive, event = self._made.get(id(tensor), (None, None))
        return event if alive is not None and alive() is tensor else None


def _is_activation(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    is_leaf = next(module.children(), None) is None and next(module.parameters(), None) is None
    return is_leaf and any(word in name for word in _SPELLED_BY_HAND)


def groups_present(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, Counter[str]]:
    """Returns the attention blocks and fusable groups that one run of ``model`` goes through.

    Each is counted by the path of the module that runs its convolution, linear layer or last
    product:

    - ``attention``: calls of scaled dot-product or multi-head attention, and softmaxes between
      two matrix products.
    - ``conv_norm``: convolutions read by a batch norm and nothing else.
    - ``conv_norm_activation``: those whose norm is read by an activation and nothing else; they
      are not counted as ``conv_norm``.
    - ``linear_activation``: linear layers read by an activation and nothing else.
    """
    watcher = _Watcher(model)
    with torch.no_grad(), watcher, watcher.modules():
        model(*args, **kwargs)
    groups: dict[str, Counter[str]] = {name: Counter() for name in GROUPS}
    for event in watcher.events:
        kind = _group_of(event)
        if kind is not None:
            layer = event if kind == "attention" else event.sources[0]
            groups[kind][layer.path if layer is not None else ""] += 1
    return groups


def _group_of(event: _Event) -> str | None:
    if event.kind == "attention" or (event.kind == "matmul" and _softmax_before(event)):
        return "attention"
    if event.kind == "norm" and _reads_alone(event, "conv"):
        is_followed = len(event.readers) == 1 and event.readers[0].kind == "activation"
        return "conv_norm_activation" if is_followed else "conv_norm"
    if event.kind == "activation" and _reads_alone(event, "linear"):
        return "linear_activation"
    return None


def _reads_alone(event: _Event, kind: str) -> bool:
    source = event.sources[0] if event.sources else None
    return source is not None and source.kind == kind and len(source.readers) == 1


def _softmax_before(event: _Event) -> bool:
    return any(
        softmax.sources[0] is not None and _nearest(softmax.sources[0], "matmul") is not None
        for softmax in (_nearest(source, "softmax") for source in event.sources)
        if softmax is not None and softmax.sources
    )


def _nearest(event: _Event | None, kind: str, depth: int = 12) -> _Event | None:
    """Returns the nearest event of ``kind`` before, past scales, masks and reshapes."""
    if event is None or event.kind == kind:
        return event
    if event.kind != "pass" or depth == 0:
        return None
    found = (_nearest(source, kind, depth - 1) for source in event.sources)
    return next((item for item in found if item is not None), None)
