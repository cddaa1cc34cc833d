"""The printed graphs of small whole models; ``make golden`` writes them anew."""

from pathlib import Path

import pytest
import torch

from embedl_deploy.graph import graph_text
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.quantize import convert, quantize
from embedl_deploy.testing import randomize
from embedl_deploy.transformation import transform
from tests.golden.small_models import CASES

FOLDER = Path(__file__).parent
BACKENDS = ("inductor", "tensorrt", "torchao", "lattice")


def text_of(name: str, backend: str) -> str:
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build().eval()
    result = transform(model, case.args, backend=backend)
    applied = [f"# {count} × {rule}" for rule, count in result.report.counts().items()]
    refused = [
        f"# {item.pattern} at %{item.site}: {item.reason}" for item in result.report.refusals()
    ]
    lines = [f"# {name} for {backend}", graph_text(result.model), *applied, *refused]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_printed_graph_is_the_one_kept(
    name: str, backend: str, request: pytest.FixtureRequest
) -> None:
    file = FOLDER / f"{name}.{backend}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text(text_of(name, backend))

    assert text_of(name, backend) == file.read_text()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_rewritten_model_computes_the_same(name: str, backend: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = randomize(case.build()).eval()
    expected = model(*case.args)

    result = transform(model, case.args, backend=backend)

    assert relative_error(result.model(*case.args), expected) < 1e-4
    assert list(result.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_the_converted_model_computes_what_the_quantized_one_does(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build().eval()
    quantized = quantize(model, case.args, forward_loop=[case.args], backend="inductor")

    converted = convert(quantized)

    assert relative_error(converted(*case.args), quantized(*case.args)) < 1e-4
