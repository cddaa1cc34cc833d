"""Writes the ``forward`` of a lowered model: its arguments bound, guarded, run, put together.

The source text is made once per model, for its one input structure. A call walks no tree: it
unpacks containers by name, compares what guards ask for, and builds the output literally.
"""

import re
from collections.abc import Callable, Iterator
from inspect import Parameter as InspectParameter

import torch

from embedl_deploy.lowering.expressions import FUNCTIONS, linear_in, symbols_in
from embedl_deploy.lowering.output_source import output_source
from embedl_deploy.lowering.signature import (
    ConstantInput,
    Parameter,
    Result,
    Signature,
    Size,
    SizeInput,
    TensorInput,
)
from embedl_deploy.lowering.structure import (
    Branch,
    Leaf,
    Structure,
    child_names,
    is_namedtuple,
    registered,
)

_MISFITS = (
    "(AttributeError, TypeError, KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError)"
)
"""What reading a value of an unexpected kind may raise; the slow path then says what is wrong."""

_NAME = re.compile(r"[A-Za-z_]\w*")

Forward = Callable[..., object]


def write_forward(
    signature: Signature, run: Callable[..., object], miss: Callable[..., object]
) -> tuple[Forward, str]:
    """Returns the ``forward`` for ``signature`` and its source text.

    Args:
        signature: What the model takes and returns.
        run: Takes the graph's arguments, returns a sequence of its results.
        miss: Called with ``(args, kwargs)`` when a guard fails; what it returns is returned.
    """
    writer = _Writer(signature)
    source = writer.write()
    namespace = {**FUNCTIONS, **writer.constants, "_run": run, "_miss": miss}
    exec(compile(source, "<forward of a lowered model>", "exec"), namespace)
    forward = namespace["forward"]
    assert callable(forward)
    return forward, source


class _Writer:
    """Collects lines of source, and the objects that they name."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.constants: dict[str, object] = {
            "_grad_enabled": torch.is_grad_enabled,
            "_no_grad": torch.no_grad,
            "_type": type,
            "_len": len,
            "_dict": dict,
            "_int": int,
        }
        self.body: list[str] = []
        self.counter = 0
        self.known_symbols: dict[str, str] = {}
        self.late: list[str] = []

    def write(self) -> str:
        header = [self.header(parameter) for parameter in self.signature.parameters]
        for parameter in self.signature.parameters:
            self.bind_parameter(parameter)
        for index, leaf in enumerate(self.signature.inputs):
            self.guard_leaf(index, leaf)
        self.guard_sizes()
        lines = [f"def forward({', '.join(self.with_markers(header))}):", "    try:"]
        lines += [f"        {line}" for line in self.body] or ["        pass"]
        lines += [f"    except {_MISFITS}:", f"        return {self.miss()}"]
        lines += [f"    {line}" for line in self.run()]
        lines.append(f"    return {output_source(self.signature, self.constant, self.size_text)}")
        return "\n".join(lines) + "\n"

    def constant(self, value: object) -> str:
        """Returns a name for ``value`` in the generated code's globals."""
        name = f"_c{len(self.constants)}"
        self.constants[name] = value
        return name

    def fresh(self) -> str:
        self.counter += 1
        return f"_t{self.counter}"

    def require(self, condition: str) -> None:
        self.body.append(f"if not ({condition}): return {self.miss()}")

    def miss(self) -> str:
        """Returns the call that hands the arguments to the slow path as they came."""
        positional: list[str] = []
        named: list[str] = []
        for parameter in self.signature.parameters:
            match parameter.kind:
                case InspectParameter.VAR_POSITIONAL:
                    positional.append(f"*{parameter.name}")
                case InspectParameter.VAR_KEYWORD:
                    named.append(f"**{parameter.name}")
                case InspectParameter.KEYWORD_ONLY:
                    named.append(f"{parameter.name!r}: {parameter.name}")
                case _:
                    positional.append(parameter.name)
        return f"_miss(({''.join(f'{name}, ' for name in positional)}), {{{', '.join(named)}}})"

    def header(self, parameter: Parameter) -> str:
        prefix = {InspectParameter.VAR_POSITIONAL: "*", InspectParameter.VAR_KEYWORD: "**"}
        text = prefix.get(parameter.kind, "") + parameter.name
        return f"{text}={self.constant(parameter.default)}" if parameter.has_default else text

    def with_markers(self, header: list[str]) -> Iterator[str]:
        """Yields the parameters with the ``/`` and ``*`` between their kinds."""
        kinds = [parameter.kind for parameter in self.signature.parameters]
        starred = InspectParameter.VAR_POSITIONAL in kinds
        for position, (text, kind) in enumerate(zip(header, kinds, strict=True)):
            if kind is InspectParameter.KEYWORD_ONLY and not starred:
                starred = True
                yield "*"
            yield text
            following = kinds[position + 1] if position + 1 < len(kinds) else None
            if kind is InspectParameter.POSITIONAL_ONLY and following is not kind:
                yield "/"

    def bind_parameter(self, parameter: Parameter) -> None:
        if parameter.structure is not None:
            self.bind(parameter.structure, parameter.name)
        elif parameter.kind in (InspectParameter.VAR_POSITIONAL, InspectParameter.VAR_KEYWORD):
            self.require(f"not {parameter.name}")
        else:
            default = self.constant(parameter.default)
            name = parameter.name
            same = f"_type({name}) is _type({default}) and {name} == {default}"
            self.require(f"{name} is {default} or ({same})")

    def bind(self, structure: Structure, value: str) -> None:
        """Writes lines that unpack ``value`` into one variable per leaf."""
        if isinstance(structure, Leaf):
            self.body.append(f"_v{structure.index} = {value}")
            return
        if structure.kind in (tuple, list) or is_namedtuple(structure.kind):
            self.bind_items(structure, value)
        elif structure.kind is dict:
            self.require(f"_type({value}) is _dict and _len({value}) == {len(structure.children)}")
            for child, name in zip(structure.children, child_names(structure), strict=True):
                self.bind_child(child, f"{value}{name}")
        else:
            self.bind_registered(structure, value)

    def bind_items(self, branch: Branch, value: str) -> None:
        kind = self.constant(branch.kind)
        self.require(f"_type({value}) is {kind} and _len({value}) == {len(branch.children)}")
        for position, child in enumerate(branch.children):
            self.bind_child(child, f"{value}[{position}]")

    def bind_registered(self, branch: Branch, value: str) -> None:
        """Unpacks a class that pytree knows by a function."""
        flatten, context = self.constant(registered(branch.kind)[0]), self.constant(branch.context)
        children = self.fresh()
        self.require(f"_type({value}) is {self.constant(branch.kind)}")
        self.body.append(f"{children}, _context = {flatten}({value})")
        self.require(f"_context == {context} and _len({children}) == {len(branch.children)}")
        for position, child in enumerate(branch.children):
            self.bind_child(child, f"{children}[{position}]")

    def bind_child(self, child: Structure, value: str) -> None:
        if isinstance(child, Leaf):
            self.bind(child, value)
            return
        name = self.fresh()
        self.body.append(f"{name} = {value}")
        self.bind(child, name)

    def guard_leaf(self, index: int, leaf: TensorInput | SizeInput | ConstantInput) -> None:
        variable = f"_v{index}"
        if isinstance(leaf, ConstantInput):
            self.guard_constant(variable, leaf.value)
        elif isinstance(leaf, SizeInput):
            self.require(f"_type({variable}) is _int")
            self.note_size(variable, leaf.size)
        else:
            self.guard_tensor(variable, leaf)

    def guard_constant(self, variable: str, value: object) -> None:
        if value is None or isinstance(value, bool):
            self.require(f"{variable} is {value}")
            return
        kind = type(value)
        shown = repr(value) if kind in (int, str) else self.constant(value)
        self.require(f"{variable} == {shown} and _type({variable}) is {self.constant(kind)}")

    def guard_tensor(self, variable: str, leaf: TensorInput) -> None:
        conditions = [f"{variable}.dtype is {self.constant(leaf.dtype)}"]
        if leaf.device == torch.device("cpu"):
            conditions.append(f"{variable}.is_cpu")
        else:
            conditions.append(f"{variable}.device == {self.constant(leaf.device)}")
        if all(isinstance(size, int) for size in leaf.shape):
            conditions.append(f"{variable}.shape == {tuple(leaf.shape)!r}")
        self.require(" and ".join(conditions))
        if any(isinstance(size, str) for size in leaf.shape):
            names = [f"{variable}_{dimension}" for dimension in range(len(leaf.shape))]
            self.body.append(f"{', '.join(names)}, = {variable}.shape")
            for name, size in zip(names, leaf.shape, strict=True):
                self.note_size(name, size)
        self.normalise(variable, leaf)

    def normalise(self, variable: str, leaf: TensorInput) -> None:
        """Writes the line that copies a tensor of another memory layout into the one expected."""
        if not leaf.shape:
            return
        if leaf.memory_format is torch.contiguous_format:
            self.body.append(
                f"if not {variable}.is_contiguous(): {variable} = {variable}.contiguous()"
            )
            return
        layout = self.constant(leaf.memory_format)
        self.body.append(
            f"if not {variable}.is_contiguous(memory_format={layout}): "
            f"{variable} = {variable}.contiguous(memory_format={layout})"
        )

    def note_size(self, variable: str, size: Size) -> None:
        """Remembers a symbol the first time it is seen alone, else notes a comparison."""
        if isinstance(size, int):
            self.late.append(f"{variable} == {size}")
        elif symbols_in(size) == (size,) and size not in self.known_symbols:
            self.known_symbols[size] = variable
            self.body.append(f"{_symbol(size)} = {variable}")
        else:
            self.late.append(f"{variable} == {self.size_text(size)}")
            self.solve(variable, size)

    def solve(self, variable: str, size: str) -> None:
        """Writes the symbol of a derived size such as ``2*s0``, if nothing else determines it."""
        linear = linear_in(size)
        if linear is None or linear[0] in self.known_symbols or self.is_plain_input(linear[0]):
            return
        symbol, factor, offset = linear
        self.known_symbols[symbol] = variable
        self.body.append(f"{_symbol(symbol)} = ({variable} - {offset}) // {factor}")

    def is_plain_input(self, symbol: str) -> bool:
        """Tells whether some input has ``symbol`` itself as a size."""
        for leaf in self.signature.inputs:
            if isinstance(leaf, TensorInput) and symbol in leaf.shape:
                return True
            if isinstance(leaf, SizeInput) and leaf.size == symbol:
                return True
        return False

    def size_text(self, size: str) -> str:
        names = symbols_in(size)  # raises unless the text is plain arithmetic
        return f"({_NAME.sub(lambda m: _symbol(m[0]) if m[0] in names else m[0], size)})"

    def guard_sizes(self) -> None:
        conditions = list(self.late)
        for symbol, allowed in self.signature.symbols.items():
            if symbol not in self.known_symbols:
                continue
            upper = "" if allowed.upper is None else f" <= {allowed.upper}"
            conditions.append(f"{allowed.lower} <= {_symbol(symbol)}{upper}")
        conditions += [
            self.size_text(constraint)
            for constraint in self.signature.constraints
            if all(symbol in self.known_symbols for symbol in symbols_in(constraint))
        ]
        if conditions:
            self.require(" and ".join(conditions))

    def run(self) -> list[str]:
        arguments = ", ".join(f"_v{index}" for index in self.signature.arguments)
        count = 1 + max(
            (o.index for o in self.signature.outputs if isinstance(o, Result)), default=-1
        )
        results = "".join(f"_r{index}, " for index in range(count))
        call = f"{results}= _run({arguments})" if count else f"_run({arguments})"
        return ["if _grad_enabled():", f"    with _no_grad(): {call}", "else:", f"    {call}"]


def _symbol(name: str) -> str:
    """Returns the variable of a symbol: no parameter of a model is called so."""
    return f"_size_{name}"
