from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.errors import InputError, ModelSourceError, TracingError
from embedl_deploy.graph.record import record_of
from embedl_deploy.tracing import load_program, trace

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_takes_exported_programs_their_modules_and_symbolic_traces() -> None:
    model = Tied().eval()
    program = torch.export.export(model, (ROWS,), strict=False)

    graphs = [
        trace(program),
        trace(program.module(), (ROWS,)),
        trace(torch.fx.symbolic_trace(model), (ROWS,)),
    ]

    for graph in graphs:
        assert torch.equal(graph(ROWS), model(ROWS))
        assert set(graph.state_dict()) == set(model.state_dict())
        assert isinstance(graph.get_submodule("second"), nn.Linear)


def test_a_loaded_program_is_tied_again(tmp_path: Path) -> None:
    model = Tied().eval()
    torch.export.save(torch.export.export(model, (ROWS,), strict=False), tmp_path / "m.pt2")

    graph = trace(load_program(tmp_path / "m.pt2"))

    assert graph.get_submodule("first").weight is graph.get_submodule("second").weight
    assert torch.equal(graph(ROWS), model(ROWS))


def test_a_file_that_is_cut_short_or_missing_is_named(tmp_path: Path) -> None:
    program = torch.export.export(Tied(), (ROWS,), strict=False)
    torch.export.save(program, tmp_path / "m.pt2")
    cut = tmp_path / "cut.pt2"
    cut.write_bytes((tmp_path / "m.pt2").read_bytes()[:2000])

    with pytest.raises(ModelSourceError, match=r"cut\.pt2 \(2000 bytes\)"):
        load_program(cut)
    with pytest.raises(ModelSourceError, match="there is no file"):
        load_program(tmp_path / "none.pt2")


def test_a_traced_graph_is_copied_not_traced_again() -> None:
    first = trace(Tied().eval(), (ROWS,))

    second = trace(first)

    assert second is not first
    assert second.get_submodule("first") is first.get_submodule("first")
    assert torch.equal(second(ROWS), first(ROWS))


class Assigns(nn.Module):
    """Calls a function that torch.export cannot trace and torch.fx records as it is."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return x + 1
        raise RuntimeError("only torch.fx gets through here")


def test_auto_falls_back_to_fx_and_says_so() -> None:
    graph = trace(Assigns(), (ROWS,))

    record = record_of(graph)
    assert torch.equal(graph(ROWS), ROWS + 1)
    assert record.tracer == "fx"
    assert "only torch.fx gets through here" in record.notes[0]
    with pytest.raises(TracingError, match=r"only torch\.fx gets through here"):
        trace(Assigns(), (ROWS,), tracer="export")


def test_fx_gives_the_same_graph_on_request() -> None:
    model = Tied().eval()

    graph = trace(model, (ROWS,), tracer="fx")

    assert record_of(graph).tracer == "fx"
    assert torch.equal(graph(ROWS), model(ROWS))
    assert graph.get_submodule("first").weight is model.first.weight


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_on_data_names_the_line_and_the_cure() -> None:
    message = r"test_sources\.py:\d+ \(if x\.sum\(\) > 0:\).*torch\.cond"
    with pytest.raises(TracingError, match=message) as caught:
        trace(Branches(), (ROWS,))

    assert "torch.fx cannot trace it either" in caught.value.__notes__[0]


def test_a_line_in_a_package_beside_torch_is_named_and_long_reasons_are_cut() -> None:
    file = f"{Path(torch.__file__).parent}vision/boxes.py"
    names: dict[str, Callable[[Tensor], Tensor]] = {}
    code = "def largest(x):\n    assert not 'long' * 200, 'long' * 200\n"
    exec(compile(code, file, "exec"), names)

    class Boxes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return names["largest"](x)

    with pytest.raises(TracingError) as caught:
        trace(Boxes(), (ROWS,))

    assert f"{file}:2" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_failure_prints_and_logs_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TracingError):
        trace(Branches(), (ROWS,))
    with pytest.raises(TracingError, match="same reduction dim"):
        trace(nn.Linear(3, 3), (ROWS,))

    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > 10] == []


def test_inputs_that_do_not_fit_show_the_signature() -> None:
    with pytest.raises(TracingError, match=r"Tied\.forward\(x: .*too many positional"):
        trace(Tied(), (ROWS, ROWS))
    with pytest.raises(TracingError, match="missing a required argument: 'x'"):
        trace(Tied(), (), {"y": ROWS})
    with pytest.raises(TracingError, match=r"must be a tuple.*write \(x,\)"):
        trace(Tied(), cast("tuple[Tensor, ...]", ROWS))
    with pytest.raises(TracingError, match="needs example inputs"):
        trace(Tied())
    with pytest.raises(TracingError, match=r"must be an nn\.Module.*got builtin"):
        trace(cast("nn.Module", torch.relu), (ROWS,))


def test_inputs_of_an_exported_program_are_checked() -> None:
    program = torch.export.export(Tied().eval(), (ROWS,), strict=False)

    with pytest.raises(TracingError, match=r"input 'x' must be .*\[4, 8\], got .*\[5, 8\]"):
        trace(program, (torch.zeros(5, 8),))
    with pytest.raises(TracingError, match="unexpected"):
        trace(program, (ROWS, ROWS))
    with pytest.raises(TracingError, match="dynamic shapes already"):
        trace(program, dynamic_shapes={"x": {0: torch.export.Dim("n")}})


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: int, flag: bool = True) -> Tensor:
        return x * factor if flag else x


def test_an_input_that_became_part_of_the_graph_may_not_change() -> None:
    graph = trace(Scaled(), (ROWS, 3), {"flag": True})

    assert torch.equal(graph(ROWS, 3, flag=True), ROWS * 3)
    with pytest.raises(InputError, match=r"input 'factor' was 3 .* got 4"):
        graph(ROWS, 4, flag=True)


def test_a_program_that_writes_its_state_is_refused() -> None:
    program = torch.export.export(nn.BatchNorm1d(8), (ROWS,), strict=False).run_decompositions()

    with pytest.raises(TracingError, match="writes to 'running_mean' in every call"):
        trace(program)


def test_a_decomposed_program_is_lifted_too() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LayerNorm(8)).eval()
    program = torch.export.export(model, (ROWS,), strict=False).run_decompositions()

    graph = trace(program)

    layers = [type(graph.get_submodule(name)) for name in "012"]
    assert layers == [nn.Linear, nn.BatchNorm1d, nn.LayerNorm]
    torch.testing.assert_close(graph(ROWS), model(ROWS), rtol=1e-6, atol=1e-6)
