"""Writes a script that shows a wrong rewrite without the model it was found in."""

import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from embedl_deploy.errors import OutputPathError
from embedl_deploy.files import write_aside
from embedl_deploy.graph.evaluate import attribute_of, sample_value, size_hint
from embedl_deploy.graph.nodes import module_of, value_of
from embedl_deploy.graph.subgraphs import extract_subgraph, subgraph_inputs, with_attributes
from embedl_deploy.rewriting.records import SiteRecord

_MOST_LINES = 39
_MOST_BODY_LINES = 24


def write_reproduction(
    path: Path, model: GraphModule, sites: Sequence[SiteRecord], rules: Sequence[type]
) -> Path:
    """Writes a script that applies ``rules`` to the part of ``model`` where ``sites`` stand.

    The script builds that part anew, its weights random; where that cannot be spelled in a few
    lines, the part is saved beside the script as a ``.pt2`` file. It exits with an error while
    the rewrite is wrong.

    Raises:
        OutputPathError: ``path`` cannot be written.
    """
    region = _region(model, sites)
    inputs = subgraph_inputs(region)
    try:
        body = _as_module(region, inputs)
        if body is None:
            body = _as_saved_program(path, model, region, inputs)
        lines = [*_head(sites, rules), *body, *_tail(inputs, rules)]
        assert len(lines) <= _MOST_LINES, "the pieces are bounded"
        write_aside(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise OutputPathError(f"the script cannot be written to {path}: {error}") from error
    return path


def _region(model: GraphModule, sites: Sequence[SiteRecord]) -> list[Node]:
    """Returns the nodes that ``sites`` consume and everything between them."""
    names = {name for site in sites for name in site.nodes}
    chosen = [node for node in model.graph.nodes if node.name in names]
    below = _reached(chosen, _readers)
    above = _reached(chosen, _inputs)
    between = below & above
    return [node for node in model.graph.nodes if node.name in names or node in between]


def _readers(node: Node) -> list[Node]:
    return list(node.users)


def _inputs(node: Node) -> list[Node]:
    return node.all_input_nodes


def _reached(start: Sequence[Node], step: Callable[[Node], list[Node]]) -> set[Node]:
    pending, seen = list(start), set[Node]()
    while pending:
        for node in step(pending.pop()):
            if node not in seen and node.op.startswith("call_"):
                seen.add(node)
                pending.append(node)
    return seen


def _head(sites: Sequence[SiteRecord], rules: Sequence[type]) -> list[str]:
    site = sites[-1]
    lines = [
        f'"""{site.pattern} at %{site.site} moves the output; run me to see it."""',
        "import sys",
        "import torch",
        "from torch import Tensor, nn",
        "from torch.fx import GraphModule, Node",
        "from embedl_deploy.graph.distance import relative_error",
        "from embedl_deploy.testing import randomize",
        "from embedl_deploy.transformation import transform",
    ]
    for rule in dict.fromkeys(rules):
        lines += _import_of(rule)
    return lines


def _import_of(rule: type) -> list[str]:
    if "<locals>" in rule.__qualname__ or rule.__module__ == "__main__":
        source = textwrap.dedent(inspect.getsource(rule)).splitlines()
        where = inspect.getsourcefile(rule)
        short = ["from embedl_deploy.patterns import *", *filter(str.strip, source)]
        fits = len(short) <= _MOST_LINES - _MOST_BODY_LINES
        return short if fits else [f"# define {rule.__qualname__} here, as in {where}"]
    if _is_importable(rule.__module__):
        return [f"from {rule.__module__} import {rule.__qualname__}"]
    file = Path(inspect.getfile(rule))
    return [
        f"sys.path.insert(0, {str(file.parent)!r})",
        f"from {file.stem} import {rule.__qualname__}",
    ]


def _is_importable(name: str) -> bool:
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    origin = None if spec is None else spec.origin
    module = sys.modules.get(name)
    return origin is not None and getattr(module, "__file__", None) is not None


def _as_module(region: Sequence[Node], inputs: Sequence[Node]) -> list[str] | None:
    """Returns the region as a module's source, None where it cannot be spelled shortly."""
    spelling = _Spelling()
    for node in with_attributes(region):
        if not spelling.add(node):
            return None
    inside = set(region)
    outputs = [n for n in region if any(user not in inside for user in n.users) or not n.users]
    body = [
        "class Part(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        self.{name} = {text}" for name, text in spelling.parts.items()),
        f"    def forward(self, {', '.join(read.name for read in inputs)}):",
        *(f"        {line}" for line in spelling.lines),
        f"        return ({', '.join(node.name for node in outputs)},)",
        "model = randomize(Part().eval())",
    ]
    return body if len(body) <= _MOST_BODY_LINES else None


class _Spelling:
    """Nodes as lines of Python."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.lines: list[str] = []
        self._names: dict[int, str] = {}

    def add(self, node: Node) -> bool:
        """Spells one node; tells whether that was possible."""
        arguments = ", ".join(
            [_text(value) for value in node.args]
            + [f"{name}={_text(value)}" for name, value in node.kwargs.items()]
        )
        callee = self._callee(node)
        if callee is None or "<" in arguments:
            return False
        call = callee if node.op == "get_attr" else f"{callee}({arguments})"
        self.lines.append(f"{node.name} = {call}")
        return True

    def _callee(self, node: Node) -> str | None:
        if node.op == "call_function":
            return _function(node.target)
        module = module_of(node)
        if module is not None:
            return self._part(module, node.name, _constructor(module))
        if node.op == "get_attr" and node.graph.owning_module is not None:
            value = attribute_of(node.graph.owning_module, str(node.target))
            return self._part(value, node.name, _tensor(value))
        return None

    def _part(self, value: object, name: str, text: str | None) -> str | None:
        if text is None:
            return None
        known = self._names.setdefault(id(value), f"part_{name}")
        self.parts[known] = text
        return f"self.{known}"


def _constructor(module: nn.Module) -> str | None:
    """Returns code that makes a module like ``module``, None where its text is no code."""
    text = repr(module)
    if type(module) is not getattr(nn, type(module).__name__, None) or "\n" in text:
        return None
    try:
        made = eval(text, dict(vars(nn)))  # the text of torch's own module
    except Exception:  # noqa: BLE001  # a text that is no code may fail in any way
        return None
    same = [tuple(p.shape) for p in made.parameters()] == [
        tuple(p.shape) for p in module.parameters()
    ]
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    suffix = "" if dtype is torch.float32 else f".to({dtype})"
    return f"nn.{text}{suffix}" if same and repr(made) == text else None


def _tensor(value: object) -> str | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    return f"nn.Parameter(torch.rand({list(value.shape)}, dtype={value.dtype}))"


def _function(target: object) -> str | None:
    if type(target).__module__ == "torch._ops":
        return f"torch.ops.{target}"
    return "(lambda items, index: items[index])" if _is_getitem(target) else None


def _is_getitem(target: object) -> bool:
    return getattr(target, "__name__", "") == "getitem"


def _text(argument: Argument) -> str:
    if isinstance(argument, Node):
        return argument.name
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(_text(item) for item in argument)
        return f"[{inner}]"
    if (isinstance(argument, float) and argument != argument) or argument in (
        float("inf"),
        float("-inf"),
    ):
        return f"float({str(argument)!r})"
    if isinstance(argument, torch.device):
        return f"torch.device({str(argument)!r})"
    return repr(argument)


def _as_saved_program(
    path: Path, model: GraphModule, region: Sequence[Node], inputs: Sequence[Node]
) -> list[str]:
    part = extract_subgraph(model, region).eval()
    generator = torch.Generator().manual_seed(0)
    example = tuple(sample_value(read, generator) for read in inputs)
    saved = path.with_suffix(".pt2").resolve()
    torch.export.save(torch.export.export(part, example, strict=False), saved)
    return [f"model = torch.export.load({str(saved)!r}).module()"]


def _tail(inputs: Sequence[Node], rules: Sequence[type]) -> list[str]:
    names = ", ".join(rule.__name__ for rule in dict.fromkeys(rules))
    values = ", ".join(_sample_text(read) for read in inputs)
    return [
        "torch.manual_seed(0)",
        f"inputs = ({values},)",
        "wanted = model(*inputs)",
        f"result = transform(model, inputs, patterns=[{names}])",
        "error = relative_error(result.model(*inputs), wanted)",
        'sys.exit(f"{result.report}\\nthe output moved by {error:.1e}" if error > 1e-4 else 0)',
    ]


def _sample_text(read: Node) -> str:
    value = value_of(read)
    if not isinstance(value, Tensor):
        return repr(sample_value(read, torch.Generator().manual_seed(0)))
    sizes = [size_hint(size) for size in value.shape]
    if value.dtype.is_floating_point:
        return f"torch.randn({sizes}, dtype={value.dtype})"
    return f"torch.randint(0, 2, {sizes}).to({value.dtype})"
