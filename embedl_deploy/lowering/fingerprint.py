"""Names graphs, weights and inputs by their content: equal content, equal name, everywhere."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.environment import hardware, versions
from embedl_deploy.lowering.graph_file import graph_to_json
from embedl_deploy.lowering.literals import Json


def digest(value: Json) -> str:
    """Returns the SHA-256 of a value as sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def graph_digest(graph_module: GraphModule) -> str | None:
    """Returns the SHA-256 of a graph with its weights, None if it has no form as data."""
    try:
        graph, tensors = graph_to_json(graph_module)
    except CheckpointError:
        return None
    return digest([graph, [[name, tensor_digest(value)] for name, value in tensors.items()]])


def tensor_digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of type, shape and elements of a tensor."""
    plain = tensor.detach().cpu().contiguous()
    digested = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    if plain.numel():
        digested.update(plain.flatten().view(torch.uint8).numpy().data)
    return digested.hexdigest()


def input_forms(values: Sequence[object]) -> Json:
    """Returns what an engine is compiled for: types, shapes and layouts, not elements."""
    return [
        [str(v.dtype), list(v.shape), list(v.stride()), str(v.device)]
        if isinstance(v, Tensor)
        else repr(v)
        for v in values
    ]


def input_digests(values: Sequence[object]) -> Json:
    """Returns what an engine's error is measured on."""
    return [tensor_digest(v) if isinstance(v, Tensor) else repr(v) for v in values]


def environment(engines: Mapping[str, Engine]) -> Json:
    """Returns versions, hardware and threads that builds of ``engines`` depend on."""
    libraries = dict.fromkeys(name for engine in engines.values() for name in engine.libraries)
    return [versions(tuple(libraries)), hardware(), torch.get_num_threads()]
