"""Draws how a lowered model was cut: every node in the colour of the engine that runs it."""

from collections.abc import Mapping
from html import escape
from typing import cast

import networkx as nx
from torch.fx import GraphModule, Node

from embedl_deploy.graph.structure import to_networkx
from embedl_deploy.lowering import LoweredModule

_COLOURS = ("#8ecae6", "#ffd166", "#b5e48c", "#f4a6a0", "#cdb4db", "#ffb703")
_EAGER, _OUTSIDE = "#e5e5e5", "#ffffff"
_WIDTH, _HEIGHT = 190, 26
_ACROSS, _DOWN = 210, 46
_MARGIN = 24


def partition_svg(model: LoweredModule) -> str:
    """Returns a picture of the graph as SVG, inputs on top; weights are left out.

    A node's tooltip names the subgraph. Edges that cross from one engine into another, or into
    eager code, are drawn thick.
    """
    graph_module = model.assembly.core.module
    homes = _homes(model)
    graph = _without_weights(graph_module)
    places = _layout(graph)
    used = list(dict.fromkeys(engine for _, engine in homes.values()))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(used)} | {"": _OUTSIDE}
    if "eager" in colours:
        colours["eager"] = _EAGER
    boxes = [
        _box(node, places[node.name], homes.get(node, ("", "")), colours)
        for node in graph_module.graph.nodes
        if node.name in places
    ]
    by_name = {node.name: homes.get(node, ("", "")) for node in graph_module.graph.nodes}
    lines = [
        _line(places[start], places[end], crosses=by_name[start][0] != by_name[end][0])
        for start, end in dict.fromkeys(list(graph.edges()))
    ]
    legend = [_legend(i, name, colours[name]) for i, name in enumerate(used)]
    width = max(x for x, _ in places.values()) + 1.5 * _WIDTH + _MARGIN
    height = max(y for _, y in places.values()) + _HEIGHT + _MARGIN
    width = max(width, _MARGIN + _ACROSS * len(used))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, *lines, *boxes, *legend, "</svg>"]) + "\n"


def _homes(model: LoweredModule) -> dict[Node, tuple[str, str]]:
    """Returns for each node that runs (subgraph, engine); eager nodes belong to none."""
    partition = model.assembly.partition
    homes: dict[Node, tuple[str, str]] = {}
    homes.update(dict.fromkeys(partition.eager_nodes, ("eager", "eager")))
    for subgraph in partition.subgraphs:
        engine = model.assembly.slots[subgraph.name].label
        homes.update(dict.fromkeys(subgraph.nodes, (subgraph.name, engine)))
    return homes


def _without_weights(graph_module: GraphModule) -> "nx.MultiDiGraph[str]":
    graph = to_networkx(graph_module)
    graph.remove_nodes_from([n.name for n in graph_module.graph.find_nodes(op="get_attr")])
    return graph


def _layout(graph: "nx.MultiDiGraph[str]") -> dict[str, tuple[float, float]]:
    """Returns the top left corner of each node: one row per generation, rows centred."""
    for row, names in enumerate(nx.topological_generations(graph)):
        for name in names:
            graph.nodes[name]["row"] = row
    raw = cast(
        "Mapping[str, tuple[float, float]]",
        nx.multipartite_layout(graph, subset_key="row", align="horizontal"),
    )
    rows: dict[int, list[str]] = {}
    for name in sorted(raw, key=lambda name: raw[name][0]):
        rows.setdefault(graph.nodes[name]["row"], []).append(name)
    widest = max(map(len, rows.values()))
    return {
        name: (
            _MARGIN + _ACROSS * (column + (widest - len(names)) / 2),
            2 * _MARGIN + _DOWN * (row + 0.5),
        )
        for row, names in rows.items()
        for column, name in enumerate(names)
    }


def _box(
    node: Node, place: tuple[float, float], home: tuple[str, str], colours: Mapping[str, str]
) -> str:
    x, y = place
    target = getattr(node.target, "__name__", str(node.target)).removesuffix(".default")
    text = node.name if node.op in ("placeholder", "output") else target
    return (
        f"<g><title>{escape(f'{home[0]} {node.name}'.strip())}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
        f'fill="{colours[home[1]]}" stroke="#555"/>'
        f'<text x="{x + _WIDTH / 2:.0f}" y="{y + 17:.0f}" text-anchor="middle">'
        f"{escape(text[:28])}</text></g>"
    )


def _line(start: tuple[float, float], end: tuple[float, float], *, crosses: bool) -> str:
    x1, y1 = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    x2, y2 = end[0] + _WIDTH / 2, end[1]
    # What skips a row bends around the boxes between.
    bend = _ACROSS if end[1] - start[1] > 1.5 * _DOWN else 0
    return (
        f'<path d="M{x1:.0f} {y1:.0f} C{x1 + bend:.0f} {y1 + bend / 4:.0f} '
        f'{x2 + bend:.0f} {y2 - bend / 4:.0f} {x2:.0f} {y2:.0f}" fill="none" stroke="#555" '
        f'stroke-width="{3 if crosses else 1}"/>'
    )


def _legend(position: int, name: str, colour: str) -> str:
    x = _MARGIN + _ACROSS * position
    return (
        f'<rect x="{x}" y="12" width="18" height="18" rx="3" fill="{colour}" stroke="#555"/>'
        f'<text x="{x + 26}" y="26">{escape(name)}</text>'
    )
