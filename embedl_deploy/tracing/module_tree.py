# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Builds the module that a lifted program becomes, with the state_dict of the model."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import TracingError
from embedl_deploy.graph.computed_weight import COMPUTATIONS
from embedl_deploy.graph.traced_module import TracedModule, container_at
from embedl_deploy.tracing.lift import Lifted
from embedl_deploy.tracing.program import Program, State, modules_of


def build_module(program: Program, lifted: Mapping[str, Lifted], training: bool) -> TracedModule:
    """Returns the module of ``program``: its graph over a tree of containers and lifted modules.

    Every key of the model's ``state_dict`` exists, in its order; none is added.

    Raises:
        TracingError: The model calls a part of its own as a graph module calls one of its own.
    """
    root = TracedModule(deferred=True)
    root.training = training
    _require_free_names(root, [*program.state, *lifted])
    waiting = dict(lifted)
    for path, names in _paths(program, lifted).items():
        made = waiting.pop(path, None)
        if made is not None:
            module = made.build()
            _hide_sources(module, path, made)
            register(root, path, module)
        for name in names:
            _put(container_at(root, path), name, program.state[f"{path}.{name}".lstrip(".")])
    _copy_training(program.origin, root)
    for path, made in waiting.items():
        module = made.build()
        if made.tensors:
            _hide_keys(module, path, made, program)
        _hide_sources(module, path, made)
        register(root, path, module)
    _move_computations_last(root, lifted)
    for name, value in program.attributes.items():
        path, _, last = name.rpartition(".")
        setattr(container_at(root, path), last, value)
        if isinstance(value, GraphModule):
            value.train(
                training
            )  # the body of a condition or loop: torch leaves it in training mode
    root.graph = program.graph
    root.shares_parameters = True
    return root.finish()


def _require_free_names(root: TracedModule, paths: Iterable[str]) -> None:
    for name in dict.fromkeys(path.partition(".")[0] for path in paths):
        if name in vars(root) or hasattr(type(root), name):
            raise TracingError(
                f"the model's own {name!r} cannot keep its name: torch.fx.GraphModule has an "
                f"attribute {name!r} of another meaning. Rename it, or trace a module that holds "
                "the model"
            )


def _move_computations_last(root: nn.Module, lifted: Mapping[str, Lifted]) -> None:
    """Lets the model's own names of the parameters come before those in computed weights."""
    for path, made in lifted.items():
        children = container_at(root, path)._modules if made.lifting.computed else {}
        for slot in made.lifting.computed:
            children[COMPUTATIONS[slot]] = children.pop(COMPUTATIONS[slot])


def _paths(program: Program, lifted: Mapping[str, Lifted]) -> dict[str, list[str]]:
    """Returns the model's own paths in its order, each with the state directly there."""
    owned: dict[str, list[str]] = {}
    for name in program.state:
        path, _, last = name.rpartition(".")
        owned.setdefault(path, []).append(last)
    if program.origin is None:
        return owned
    order = [path for path, _ in modules_of(program.origin)]
    paths = {path: owned.get(path, []) for path in order if path in owned or path in lifted}
    return {**paths, **owned}


def register(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts ``module`` at ``path``; what is registered below that path stays."""
    parent, _, last = path.rpartition(".")
    owner = container_at(root, parent)
    existing = owner._modules.get(last)
    if existing is not None:
        module._modules.update(existing._modules)
    owner._modules[last] = module


def _put(owner: nn.Module, name: str, state: State) -> None:
    if isinstance(state.tensor, nn.Parameter):
        owner._parameters.pop(name, None)  # back in the model's own order
        owner._parameters[name] = state.tensor
        return
    owner._buffers[name] = state.tensor
    if not state.persistent:
        owner._non_persistent_buffers_set.add(name)


def _copy_training(origin: nn.Module | None, root: nn.Module) -> None:
    """Gives containers the train and eval flags of the modules they stand for."""
    if origin is None:
        return
    flags = {path: module.training for path, module in modules_of(origin)}
    for path, module in modules_of(root):
        if type(module) is nn.Module:
            module.training = flags.get(path, module.training)


def _hide_keys(module: nn.Module, path: str, made: Lifted, program: Program) -> None:
    names = program.names_of()
    owners = {slot: names[id(tensor)][0] for slot, tensor in made.tensors.items()}
    module.register_state_dict_post_hook(HideKeys(tuple(owners)))
    module.register_load_state_dict_pre_hook(FillKeys(path, owners))


def _hide_sources(module: nn.Module, path: str, made: Lifted) -> None:
    """Hides the keys under which a computed weight or bias holds the model's own tensors."""
    for slot, computed in made.lifting.computed.items():
        computation = module.get_submodule(COMPUTATIONS[slot])
        owners = {
            name: source
            for name, source in zip(_inputs(len(computed.state)), computed.state, strict=True)
            if name in computation._parameters
        }
        computation.register_state_dict_post_hook(HideKeys(tuple(owners)))
        filling = FillKeys(f"{path}.{COMPUTATIONS[slot]}", owners)
        computation.register_load_state_dict_pre_hook(filling)


def _inputs(count: int) -> list[str]:
    return [f"input_{number}" for number in range(count)]


class HideKeys:
    """Keeps the keys of a module whose tensors belong to others out of the ``state_dict``."""

    def __init__(self, slots: tuple[str, ...]) -> None:
        self.slots = slots

    def __call__(
        self, module: nn.Module, state: dict[str, object], prefix: str, metadata: object
    ) -> None:
        """Drops the module's keys from a ``state_dict`` that is being made."""
        del module, metadata
        for slot in self.slots:
            state.pop(prefix + slot, None)


class FillKeys:
    """Adds the hidden keys of a module to a ``state_dict`` that is being loaded."""

    def __init__(self, path: str, owners: Mapping[str, str]) -> None:
        self.path = path
        self.owners = dict(owners)
        """The key under which the model itself keeps the tensor of each slot."""

    def __call__(
        self, module: nn.Module, state: dict[str, object], prefix: str, *rest: object
    ) -> None:
        """Takes each hidden value from its owner's key."""
        del rest
        root = prefix.removesuffix(".").removesuffix(self.path)
        for slot, owner in self.owners.items():
            own: Tensor | None = getattr(module, slot)
            state.setdefault(prefix + slot, state.get(root + owner, own))
