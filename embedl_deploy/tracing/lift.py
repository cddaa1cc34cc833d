# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Turns single ATen calls into calls of the modules they compute, under the model's own names."""

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from embedl_deploy.graph.computed_weight import compute_parameters
from embedl_deploy.graph.nodes import module_at, module_path
from embedl_deploy.tracing.lift_call import Call, Lifting, Unliftable
from embedl_deploy.tracing.lift_table import LIFT_TABLE
from embedl_deploy.tracing.program import Program, modules_of
from embedl_deploy.tracing.split_bias import split_computed_biases

_OWN_STATE = ("num_batches_tracked",)


@dataclass
class Lifted:
    """A module made for one or more calls of the graph."""

    lifting: Lifting

    tensors: dict[str, Tensor]
    """The parameter or buffer of each slot."""

    training: bool

    sources: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What a computed weight or bias is computed from, by name in the model."""

    def build(self) -> nn.Module:
        """Returns the module, around the very tensors of the model."""
        computed = self.lifting.computed
        weighted = {"device": "meta"} if self.tensors or computed else {}
        module = self.lifting.module_class(**self.lifting.options, **weighted)
        module.train(self.training)
        for slot, tensor in self.tensors.items():
            kind = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
            kind[slot] = tensor  # pyright: ignore[reportArgumentType]  # the branch above chose the dictionary
        if "num_batches_tracked" in module._buffers and "num_batches_tracked" not in self.tensors:
            module._buffers["num_batches_tracked"] = None
        if computed:
            built = {slot: how.build(self.sources) for slot, how in computed.items()}
            compute_parameters(module, built)
        return module


def lift(program: Program, *, in_body: bool = False) -> dict[str, Lifted]:
    """Replaces the calls that the lifting table covers; returns the modules made, by name.

    Args:
        program: The program to change.
        in_body: Whether it is the body of a condition or loop, whose calls know no module of the
            model: what differs between train and eval mode stays a call there.
    """
    split_computed_biases(program)
    return _Lifter(program, in_body=in_body).run()


class _Lifter:
    def __init__(self, program: Program, *, in_body: bool) -> None:
        self.program = program
        self.in_body = in_body
        self.names_of = program.names_of()
        self.lifted: dict[str, Lifted] = {}
        self.keys: dict[str, tuple[object, ...]] = {}
        self.shared: dict[tuple[object, ...], str] = {}
        self.next_number: dict[str, int] = {}
        self.per_call: dict[tuple[str, str], int] = {}
        self.direct = _direct_state(program)
        self.calls_at: dict[str, int] = {}
        self.computed_at: dict[str, dict[tuple[object, ...], None]] = {}
        self.inner = _inner_paths(program)
        self.taken = self.inner | set(self.direct) | set(program.state)
        self.moved: dict[Node, Node] = {}
        for node in program.graph.nodes:
            if node.op == "call_function" and _index(node) is None:
                path = module_path(node)
                self.calls_at[path] = self.calls_at.get(path, 0) + 1
                self.taken.add(path)

    def run(self) -> dict[str, Lifted]:
        candidates: list[tuple[Node, Lifting]] = []
        same: dict[tuple[object, ...], int] = {}
        read = [(node, self._read(node)) for node in self.program.graph.nodes]
        inside = {
            step: None
            for _, lifting in read
            if lifting is not None
            for computed in lifting.computed.values()
            for step in computed.nodes
        }
        for node, lifting in read:
            if lifting is not None and node not in inside:
                candidates.append((node, lifting))
                key = (module_path(node), *self._key(node, lifting))
                same[key] = same.get(key, 0) + 1
                if lifting.computed:
                    self.computed_at.setdefault(module_path(node), {})[key] = None
        for node, lifting in candidates:
            key = self._key(node, lifting)
            alone = same[(module_path(node), *key)] == self.calls_at[module_path(node)]
            name = self._name(node, lifting, key, alone)
            if name not in self.lifted:
                self._add(name, node, lifting)
            self._replace(node, lifting, name)
        return self.lifted

    def _read(self, node: Node) -> Lifting | None:
        """Returns what ``node`` computes, None where it must stay an ATen call."""
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            return None
        row = LIFT_TABLE.get(cast("OpOverload", node.target))
        if row is None:
            return None
        try:
            lifting = row(Call(node, self.program.state))
        except Unliftable:
            return None
        if lifting.first_of_several and any(_index(user) != 0 for user in node.users):
            return None
        # A dropout that is on in an eval-mode model would be switched off by eval().
        return None if lifting.training is not None and self._is_foreign(node, lifting) else lifting

    def _is_foreign(self, node: Node, lifting: Lifting) -> bool:
        """Tells whether the mode of a call is not the mode of a module of the model."""
        return self.in_body or lifting.training != self._training(node)

    def _training(self, node: Node) -> bool:
        origin = self.program.origin
        if origin is None or isinstance(origin, GraphModule):
            row = Call(node, self.program.state)
            return bool(row.bound.get("train", row.bound.get("training", False)))
        path = module_path(node)
        module = module_at(origin, path) if path else origin
        return origin.training if module is None else module.training

    def _key(self, node: Node, lifting: Lifting) -> tuple[object, ...]:
        tensors = tuple((slot, id(self._tensor(read))) for slot, read in lifting.slots.items())
        options = tuple((name, str(value)) for name, value in lifting.options.items())
        computed = tuple((slot, how.key) for slot, how in lifting.computed.items())
        return (lifting.module_class, options, tensors, self._training(node), computed)

    def _tensor(self, node: Node) -> Tensor:
        return self.program.state[str(node.target)].tensor

    def _name(self, node: Node, lifting: Lifting, key: tuple[object, ...], alone: bool) -> str:
        if lifting.computed:
            return self._computed(node, lifting, key)
        return self._weighted(node, lifting) if lifting.slots else self._plain(node, key, alone)

    def _computed(self, node: Node, lifting: Lifting, key: tuple[object, ...]) -> str:
        """Returns the path of the module that computes its own weight, or a free one below it."""
        path = module_path(node)
        computed = [name for how in lifting.computed.values() for name in how.state]
        used = {*computed, *(str(read.target) for read in lifting.slots.values())}
        own = [f"{path}.{name}" for name in self.direct.get(path, [])]
        is_own = path and all(name in used for name in own) and len(self.computed_at[path]) == 1
        if is_own and self.keys.setdefault(path, key) == key:
            return path
        if key not in self.shared:
            self.shared[key] = self._free(path, _parameter_stem(computed[0], node))
        return self.shared[key]

    def _weighted(self, node: Node, lifting: Lifting) -> str:
        """Returns the path of the module whose parameters these are, or a free one below it."""
        key = self._key(node, lifting)
        main = next(iter(lifting.slots.values()))
        owners = [name.rpartition(".")[0] for name in self.names_of[id(self._tensor(main))]]
        here = module_path(node)
        for path in sorted(owners, key=lambda owner: owner != here):
            if self._is_own(path, lifting) and self.keys.setdefault(path, key) == key:
                return path
        known = self.shared.get(key)
        if known is not None:
            return known
        owner = here if here in owners else owners[0]
        name = self._free(owner, _parameter_stem(str(main.target), node))
        self.shared[key] = name
        return name

    def _is_own(self, path: str, lifting: Lifting) -> bool:
        """Tells whether the state directly at ``path`` is just what the module registers."""
        names = {
            slot: self.names_of[id(self._tensor(read))] for slot, read in lifting.slots.items()
        }
        if not path or any(f"{path}.{slot}" not in found for slot, found in names.items()):
            return False
        return all(name in names or name in _OWN_STATE for name in self.direct[path])

    def _plain(self, node: Node, key: tuple[object, ...], alone: bool) -> str:
        """Returns the path of the module that made a call without parameters, or a free one."""
        path = module_path(node)
        is_leaf = bool(path) and path not in self.direct and path not in self.inner
        if alone and is_leaf and self.keys.setdefault(path, key) == key:
            return path
        # A module called twice gives its n-th call of this kind one name both times.
        call, stem = _call_of(node), _stem(node)
        number = self.per_call[call, stem] = self.per_call.get((call, stem), 0) + 1
        site = (path, stem, number, key)
        if site not in self.shared:
            self.shared[site] = self._free(path, stem)
        return self.shared[site]

    def _free(self, owner: str, stem: str) -> str:
        base = f"{owner}.{stem}" if owner else stem
        number = self.next_number.get(base, 0)
        name = base if number == 0 else f"{base}_{number}"
        while name in self.taken or (not owner and hasattr(GraphModule, name)):
            number += 1
            name = f"{base}_{number}"
        self.next_number[base] = number + 1
        self.taken.add(name)
        return name

    def _add(self, name: str, node: Node, lifting: Lifting) -> None:
        tensors = {slot: self._tensor(read) for slot, read in lifting.slots.items()}
        for own in _OWN_STATE:
            state = self.program.state.get(f"{name}.{own}")
            if state is not None:
                tensors[own] = state.tensor
        names = dict.fromkeys(name for how in lifting.computed.values() for name in how.state)
        sources = {source: self.program.state[source].tensor for source in names}
        self.lifted[name] = Lifted(lifting, tensors, self._training(node), sources)

    def _replace(self, node: Node, lifting: Lifting, name: str) -> None:
        graph = node.graph
        with graph.inserting_before(node):
            inputs = tuple(self.moved.get(read, read) for read in lifting.inputs)
            call = graph.create_node("call_module", name, inputs)
        if name.replace(".", "_") == node.name:
            call.name = node.name  # free again: the node it belonged to goes
        call.meta = dict(node.meta)
        replaced = list(node.users) if lifting.first_of_several else [node]
        for old in replaced:
            call.meta["val"] = old.meta.get("val")
            old.replace_all_uses_with(call)
            self.moved[old] = call
            graph.erase_node(old)
        if lifting.first_of_several:
            graph.erase_node(node)


def _direct_state(program: Program) -> dict[str, list[str]]:
    direct: dict[str, list[str]] = {}
    for name in program.state:
        path, _, last = name.rpartition(".")
        direct.setdefault(path, []).append(last)
    return direct


def _inner_paths(program: Program) -> set[str]:
    """Returns every path that has something below it."""
    paths = {name.rpartition(".")[0] for name in program.state}
    paths.update(module_path(node) for node in program.graph.nodes if node.op == "call_function")
    if program.origin is not None:
        paths.update(path for path, _ in modules_of(program.origin))
    inner: set[str] = set()
    for path in paths:
        parent = path.rpartition(".")[0]
        while parent and parent not in inner:
            inner.add(parent)
            parent = parent.rpartition(".")[0]
    return inner


def _call_of(node: Node) -> str:
    stack = node.meta.get("nn_module_stack")
    names = list(cast("dict[str, object]", stack)) if isinstance(stack, dict) else []
    return names[-1] if names else ""


def _stem(node: Node) -> str:
    name = node.target._opname if isinstance(node.target, OpOverload) else str(node.target)
    return "linear" if name in ("addmm", "mm", "matmul") else str(name).strip("_")


def _parameter_stem(parameter: str, node: Node) -> str:
    """Returns ``in_proj`` for ``in_proj_weight``, a name of the call for ``weight``."""
    name = parameter.rpartition(".")[2]
    stem = name.removesuffix("_weight")
    return _stem(node) if stem == name else stem


def _index(user: Node) -> object:
    """Returns which element of a tuple ``user`` takes, None if it is not such a node."""
    is_getitem = user.op == "call_function" and getattr(user.target, "__name__", "") == "getitem"
    return user.args[1] if is_getitem else None
