"""Counts what could be fused in a model by watching it run; shares nothing with the matcher."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

_KINDS = {
    "conv": ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
    "norm": ("batch_norm",),
    "linear": ("linear", "addmm"),
    "matmul": ("matmul", "bmm", "baddbmm", "einsum", "__matmul__", "__rmatmul__"),
    "softmax": ("softmax",),
    "attention": ("scaled_dot_product_attention", "multi_head_attention_forward"),
    "activation": (
        "relu",
        "relu_",
        "relu6",
        "gelu",
        "silu",
        "silu_",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "hardtanh_",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "mish",
    ),
    "pass": (
        "dropout",
        "add",
        "__add__",
        "__radd__",
        "__iadd__",
        "add_",
        "mul",
        "__mul__",
        "__rmul__",
        "div",
        "__truediv__",
        "masked_fill",
        "masked_fill_",
        "where",
        "view",
        "reshape",
        "to",
        "type_as",
        "float",
        "unsqueeze",
        "squeeze",
        "clamp",
        "__getitem__",
        "contiguous",
    ),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}


@dataclass
class _Event:
    """One call that made a tensor."""

    kind: str
    sources: tuple["_Event | None", ...]
    readers: Counter[str] = field(default_factory=Counter[str])
    reads: int = 0


class _Watcher(TorchFunctionMode):
    """Records, for every tensor, the call that made it and the kinds of calls that read it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, _Event] = {}
        self.events: list[_Event] = []
        self._alive: dict[int, weakref.ref[Tensor]] = {}

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
        if name in ("__get__", "size", "dim", "__set__", "numel", "is_floating_point"):
            return result
        kind = _KIND_OF.get(name, "other")
        inputs = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        sources = tuple(self._event_of(tensor) for tensor in inputs)
        event = _Event(kind, sources)
        for source in sources:
            if source is not None:
                source.readers[kind] += 1
                source.reads += 1
        self.events.append(event)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.made[id(leaf)] = event
                self._alive[id(leaf)] = weakref.ref(leaf)
        return result

    def _event_of(self, tensor: Tensor) -> _Event | None:
        known = self._alive.get(id(tensor))
        return self.made[id(tensor)] if known is not None and known() is tensor else None


def groups_present(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, int]:
    """Returns how many attention blocks and fusable groups one run of ``model`` goes through.

    - ``attention``: calls of scaled dot-product or multi-head attention, and softmaxes between
      two matrix products.
    - ``conv_norm``: convolutions read by a batch norm in eval mode and nothing else.
    - ``linear_activation``: linear layers read by an activation and nothing else.
    """
    watcher = _Watcher()
    with torch.no_grad(), watcher:
        model(*args, **kwargs)
    counts = Counter[str]()
    for event in watcher.events:
        if event.kind == "attention" or (event.kind == "matmul" and _softmax_before(event)):
            counts["attention"] += 1
        elif event.kind == "norm" and _only_reader(event, "conv"):
            counts["conv_norm"] += 1
        elif event.kind == "activation" and _only_reader(event, "linear"):
            counts["linear_activation"] += 1
    return {name: counts[name] for name in ("attention", "conv_norm", "linear_activation")}


def _only_reader(event: _Event, kind: str) -> bool:
    source = event.sources[0] if event.sources else None
    return source is not None and source.kind == kind and source.reads == 1


def _softmax_before(event: _Event) -> bool:
    first = event.sources[0] if event.sources else None
    softmax = _through(first, "softmax")
    if softmax is None or not softmax.sources:
        return False
    return _through(softmax.sources[0], "matmul") is not None


def _through(event: _Event | None, kind: str) -> _Event | None:
    """Returns the nearest event of ``kind`` before, past scales, masks and reshapes."""
    for _ in range(12):
        if event is None or event.kind == kind:
            return event
        if event.kind != "pass":
            return None
        known = [source for source in event.sources if source is not None]
        event = next((item for item in known if _leads_to(item, kind, 8)), None)
    return None


def _leads_to(event: _Event, kind: str, depth: int) -> bool:
    if event.kind == kind:
        return True
    if depth == 0 or event.kind != "pass":
        return False
    return any(_leads_to(item, kind, depth - 1) for item in event.sources if item is not None)
