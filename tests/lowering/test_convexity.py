import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from embedl_deploy.lowering.convexity import convex_groups

Labelled = tuple[list[str | None], list[list[int]]]


@st.composite
def labelled_dags(draw: st.DrawFn) -> Labelled:
    size = draw(st.integers(1, 14))
    labels: list[str | None] = draw(
        st.lists(st.sampled_from([None, "a", "b"]), min_size=size, max_size=size)
    )
    reads = [
        sorted(draw(st.sets(st.integers(0, vertex - 1), max_size=3))) if vertex else []
        for vertex in range(size)
    ]
    return labels, reads


def quotient(groups: list[int], reads: list[list[int]]) -> "nx.DiGraph[object]":
    """The graph with one vertex per group and per unlabelled vertex."""
    graph: nx.DiGraph[object] = nx.DiGraph()
    names = [group if group >= 0 else f"v{v}" for v, group in enumerate(groups)]
    graph.add_nodes_from(names)
    graph.add_edges_from((names[read], names[v]) for v, into in enumerate(reads) for read in into)
    graph.remove_edges_from([(name, name) for name in names])
    return graph


@given(labelled_dags())
@settings(max_examples=150, deadline=None)
def test_groups_share_a_label_and_order_among_themselves(dag: Labelled) -> None:
    labels, reads = dag

    groups = convex_groups(labels, reads)

    assert [group < 0 for group in groups] == [label is None for label in labels]
    assert len({(group, label) for group, label in zip(groups, labels, strict=True)}) == len(
        {(group if group >= 0 else None) for group in groups}
    )
    assert nx.is_directed_acyclic_graph(quotient(groups, reads))


@given(labelled_dags())
@settings(max_examples=150, deadline=None)
def test_no_path_leaves_a_group_and_comes_back(dag: Labelled) -> None:
    labels, reads = dag
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(labels)))
    graph.add_edges_from((read, v) for v, into in enumerate(reads) for read in into)

    groups = convex_groups(labels, reads)

    for group in set(groups) - {-1}:
        members = {v for v, name in enumerate(groups) if name == group}
        below = set[int]().union(*(nx.descendants(graph, member) for member in members))
        above = set[int]().union(*(nx.ancestors(graph, member) for member in members))
        assert (below & above) <= members


@given(labelled_dags())
@settings(max_examples=150, deadline=None)
def test_no_two_groups_of_one_label_could_be_one(dag: Labelled) -> None:
    labels, reads = dag

    groups = convex_groups(labels, reads)

    label_of = {group: label for group, label in zip(groups, labels, strict=True) if group >= 0}
    pairs = [
        (one, two)
        for one in label_of
        for two in label_of
        if one < two and label_of[one] == label_of[two]
    ]
    for one, two in pairs:
        joined = [one if group == two else group for group in groups]
        assert not nx.is_directed_acyclic_graph(quotient(joined, reads))


@given(labelled_dags())
@settings(max_examples=100, deadline=None)
def test_group_numbers_are_an_order_in_which_they_can_run(dag: Labelled) -> None:
    labels, reads = dag

    groups = convex_groups(labels, reads)

    closure = nx.transitive_closure(quotient(groups, reads))
    between = [(a, b) for a, b in closure.edges if isinstance(a, int) and isinstance(b, int)]
    assert all(a < b for a, b in between)


def test_a_skip_connection_around_a_foreign_vertex_stays_outside_the_group() -> None:
    labels = ["a", None, "a"]
    reads = [[], [0], [0, 1]]

    assert convex_groups(labels, reads) == [0, -1, 1]


def test_branches_that_meet_again_are_one_group() -> None:
    labels = ["a", "a", "a", "a"]
    reads = [[], [0], [0], [1, 2]]

    assert convex_groups(labels, reads) == [0, 0, 0, 0]


def test_two_groups_in_a_crosswise_circle_are_kept_apart() -> None:
    labels = ["a", "b", "b", "a"]
    reads: list[list[int]] = [[], [], [0], [1]]

    groups = convex_groups(labels, reads)

    assert nx.is_directed_acyclic_graph(quotient(groups, reads))
    assert len(set(groups)) == 3
