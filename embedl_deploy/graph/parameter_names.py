# pyright: reportPrivateUsage=false
"""The names that a graph has for one parameter, and those of them that it reads."""

from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from torch import nn
from torch.fx import GraphModule

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import module_of, parts_of


def reading_places(graph_module: GraphModule) -> Counter[int]:
    """Returns by ``id`` in how many places each parameter is read: modules that run, attributes.

    A name that is there for the state dict alone, as ``in_proj_weight`` beside the weight of the
    layer that was made of it, is no place.
    """
    run = (one for one in map(module_of, graph_module.graph.nodes) if one is not None)
    parts = (part for one in run for part in (one, *parts_of(one)))
    modules = {id(module): module for part in parts for module in part.modules()}
    places = Counter(
        id(parameter)
        for module in modules.values()
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    )
    targets = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    places.update(id(attribute_of(graph_module, target)) for target in targets)
    return places


@contextmanager
def one_parameter_by_all_names(graph_module: GraphModule) -> Generator[None]:
    """Gives a parameter that is replaced in the block under one name its other names too."""
    places: defaultdict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    kept: dict[int, nn.Parameter] = {}
    for module in graph_module.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            kept[id(parameter)] = parameter
            places[id(parameter)].append((module, name))
    yield
    # Past the modules' own attributes: where a weight is computed, its name means the result.
    for key, names in places.items():
        found = (module._parameters.get(name) for module, name in names)
        replaced = next((one for one in found if one is not None and one is not kept[key]), None)
        if replaced is not None:
            for module, name in names:
                module._parameters[name] = replaced
