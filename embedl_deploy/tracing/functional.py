"""Makes a flat graph free of in-place operations.

A write into a view becomes a new value of the view, scattered back into the tensor it views.
Other views of that tensor are taken again where they are next read. Work is linear in the graph.
"""

from torch import Tensor
from torch.fx import Graph, Node

from embedl_deploy.errors import TracingError
from embedl_deploy.graph.nodes import source_line
from embedl_deploy.tracing.program import Program
from embedl_deploy.tracing.view_inverse import NoInverse, viewed, written_back
from embedl_deploy.tracing.write import functional_value, is_write, written

_COUNTER = "num_batches_tracked"


def make_functional(program: Program) -> None:
    """Replaces every in-place operation of ``program`` by its functional form.

    Raises:
        TracingError: An operation writes to an input or to a buffer or parameter of the model.
    """
    if any(is_write(node) for node in program.graph.nodes):
        _Functionalizer(program).run()


class _Functionalizer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph: Graph = program.graph
        self.current: dict[Node, Node] = {}
        """The node that holds the value of each original node, as of ``seen``."""
        self.seen: dict[Node, int] = {}
        """How often the root of a view had been written when ``current`` was taken."""
        self.writes: dict[Node, int] = {}
        """How often each root has been written."""
        self.parent: dict[Node, Node] = {}
        """What each view is a view of."""
        self.alias: dict[Node, Node] = {}
        """The node whose tensor an in-place operation returned."""

    def run(self) -> None:
        done: list[Node] = []
        for node in list(self.graph.nodes):
            if is_write(node):
                self._write(node)
                done.append(node)
                continue
            source = viewed(node)
            with self.graph.inserting_before(node):
                for read in node.all_input_nodes:
                    node.replace_input_with(read, self._now(read))
            if source is not None:
                self.parent[node] = source
                self.seen[node] = self.writes.get(self._root(node), 0)
        for node in reversed(done):
            self.graph.erase_node(node)

    def _original(self, node: Node) -> Node:
        while node in self.alias:
            node = self.alias[node]
        return node

    def _root(self, node: Node) -> Node:
        node = self._original(node)
        while node in self.parent:
            node = self._original(self.parent[node])
        return node

    def _now(self, node: Node) -> Node:
        """Returns the node that holds the value of ``node`` now, taking a stale view again."""
        node = self._original(node)
        parent = self.parent.get(node)
        if parent is None:
            return self.current.get(node, node)
        writes = self.writes.get(self._root(node), 0)
        if self.seen[node] != writes:
            again = self.graph.create_node(
                node.op, node.target, (self._now(parent), *node.args[1:]), dict(node.kwargs)
            )
            again.meta = dict(node.meta)
            self.current[node], self.seen[node] = again, writes
        return self.current.get(node, node)

    def _write(self, node: Node) -> None:
        target = self._original(written(node))
        root = self._root(target)
        self._check_root(node, root)
        with self.graph.inserting_before(node):
            if root.op == "get_attr":
                return
            value = functional_value(node, self._now)
            self._assign(node, target, value)
        self.alias[node] = target

    def _assign(self, node: Node, target: Node, value: Node) -> None:
        """Makes ``value`` what ``target`` holds, and what it views accordingly."""
        renewed = [(target, value)]
        while target in self.parent:
            parent = self._original(self.parent[target])
            index = None
            if parent.meta.get("val") is not None and not isinstance(parent.meta["val"], Tensor):
                # One element of a split: written back into what was split.
                index, target = target.args[1], parent
                parent = self._original(self.parent[parent])
            try:
                value = written_back(target, index, self._now(parent), value)
            except NoInverse as error:
                raise TracingError(
                    f"cannot make {node.target} at {source_line(node)} functional: it writes "
                    f"through {target.target}, which cannot be written back. "
                    "Write to a clone instead, or use torch.where"
                ) from error
            value.meta = {**node.meta, "val": parent.meta.get("val")}
            renewed.append((parent, value))
            target = parent
        self.writes[target] = self.writes.get(target, 0) + 1
        for original, new in renewed:
            self.current[original] = new
            self.seen[original] = self.writes[target]

    def _check_root(self, node: Node, root: Node) -> None:
        line = source_line(node) or "an unknown line"
        if root.op == "placeholder":
            raise TracingError(
                f"the model writes to its input {root.name!r} in place ({node.target} at {line}): "
                "clone the input first, or use the operation that returns a new tensor"
            )
        if root.op != "get_attr" or str(root.target).endswith(_COUNTER):
            return
        raise TracingError(
            f"the model writes to its own buffer {str(root.target)!r} in place ({node.target} at "
            f"{line}): a traced graph keeps no state between calls; return the new value as an "
            "output, or assign it outside forward"
        )
