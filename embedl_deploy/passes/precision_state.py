"""What a search for precisions has found so far, in a file that it can go on from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from embedl_deploy.errors import CheckpointError, OutputPathError
from embedl_deploy.files import write_aside
from embedl_deploy.graph.text import graph_text
from embedl_deploy.passes.precision_sensitivity import Sensitivities
from embedl_deploy.quantization.search_result import Trial

_FORMAT = 2

Fingerprint = dict[str, str]
"""By what it is of, so that a difference can be named."""


@dataclass
class SearchState:
    """Everything that costs time to find again."""

    fingerprint: Fingerprint
    float_metric: float | None = None
    float_latency_ms: float | None = None
    sensitivities: Sensitivities | None = None
    savings: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """Measured, in milliseconds per group, as the first and as the last, by signature."""

    trials: list[Trial] = field(default_factory=list[Trial])
    path: Path | None = None

    def save(self) -> None:
        """Writes the file anew, whole or not at all; does nothing without a path."""
        if self.path is not None:
            document = {"format": _FORMAT, **asdict(self)}
            del document["path"]
            write_aside(self.path, (json.dumps(document, indent=1) + "\n").encode())


def load_state(path: Path, fingerprint: Fingerprint) -> SearchState:
    """Returns what the file holds, or an empty state if there is none.

    Raises:
        CheckpointError: It cannot be read, or belongs to another search; the message says in what
            they differ.
        OutputPathError: Its folder is not there.
    """
    if not path.parent.is_dir():
        raise OutputPathError(f"cannot keep the state in {path}: there is no folder {path.parent}")
    if not path.exists():
        return SearchState(fingerprint, path=path)
    try:
        document = cast("dict[str, object]", json.loads(path.read_text(encoding="utf-8")))
        state = _state_from(document, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds no state of a search ({type(error).__name__}: {error}): delete it to "
            "start anew"
        ) from error
    names = dict.fromkeys((*fingerprint, *state.fingerprint))
    other = [name for name in names if fingerprint.get(name) != state.fingerprint.get(name)]
    if other:
        shuffled = (
            " (a loader that shuffles gives other data each time: pass shuffle=False or a list of "
            "its batches)"
        )
        raise CheckpointError(
            f"{path} is the state of a search with another {', another '.join(other)}"
            f"{shuffled if 'data' in other else ''}: name another file, or delete it to start anew"
        )
    return state


def fingerprint_of(graph: GraphModule, data: object, settings: Mapping[str, object]) -> Fingerprint:
    """Returns what a search depends on, by its content.

    Args:
        graph: The float graph.
        data: Hashed where it is a collection of inputs; a callable goes by its name.
        settings: Whatever else matters, as text or as functions, which go by their names.
    """
    tensors = chain(graph.parameters(), graph.buffers())
    return {
        "graph": _digest([graph_text(graph)]),
        "weights": _digest(tensors),
        "data": _digest(_leaves_of(data)),
        "version of torch": torch.__version__,
        **{name: name_of(value) for name, value in settings.items()},
    }


def name_of(value: object) -> str:
    """Returns text as it is, a function by the module and the name it was defined under."""
    if isinstance(value, str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value)
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{getattr(kind, '__qualname__', '')}"


def _state_from(document: dict[str, object], path: Path) -> SearchState:
    if document.pop("format") != _FORMAT:
        raise ValueError("another format")
    seen = cast("dict[str, object] | None", document.pop("sensitivities"))
    trials = cast("list[dict[str, object]]", document.pop("trials"))
    known = cast("Callable[..., SearchState]", SearchState)(**document)
    known.path = path
    known.savings = {signature: (first, last) for signature, (first, last) in known.savings.items()}
    if seen is not None:
        known.sensitivities = cast("Callable[..., Sensitivities]", Sensitivities)(**seen)
    for trial in trials:
        trial["quantized"] = tuple(cast("list[str]", trial["quantized"]))
        known.trials.append(cast("Callable[..., Trial]", Trial)(**trial))
    return known


def _leaves_of(data: object) -> Iterator[object]:
    """Yields the tensors and other values of every batch, one batch after the other."""
    if not isinstance(data, Iterable):
        yield name_of(data)
        return
    for batch in cast("Iterable[object]", data):
        for leaf in tree_leaves(batch):
            yield leaf if isinstance(leaf, Tensor) else repr(leaf)


def _digest(values: Iterable[object]) -> str:
    """Returns the digest of tensors and texts, in memory for one of them."""
    digested = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            header = f"{plain.dtype}{tuple(plain.shape)}".encode()
            digested.update((len(header) + plain.nbytes).to_bytes(8, "big"))
            digested.update(header)
            if plain.numel():
                digested.update(plain.flatten().view(torch.uint8).numpy().data)
        else:
            text = str(value).encode()
            digested.update(len(text).to_bytes(8, "big"))
            digested.update(text)
    return digested.hexdigest()
