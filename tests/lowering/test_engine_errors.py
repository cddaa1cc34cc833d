"""What an engine raises when it runs is a fallback, or an error of this package's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy.deployment import lower
from embedl_deploy.engines import EagerEngine, OnnxRuntimeEngine
from embedl_deploy.engines.recording import RecordingEngine
from embedl_deploy.errors import LoweringError

INDICES = torch.tensor([1, 2, 3])
TOO_LARGE = torch.tensor([1, 99, 3])


def embedding() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4)).eval()


class OneRow(OnnxRuntimeEngine):
    """Loads, and then hands inputs of a wrong shape to the library."""

    def _run(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        return super()._run([value[:1] for value in inputs])


def test_what_onnx_runtime_refuses_as_it_runs_is_an_error_of_ours() -> None:
    engine = OnnxRuntimeEngine().build(embedding(), None, [(INDICES,)])

    with pytest.raises(LoweringError, match=r"on this input: InvalidArgument: .*idx=99"):
        engine.infer(TOO_LARGE)


def test_without_a_fallback_the_error_names_the_engine_and_its_reason() -> None:
    lowered = lower(embedding(), (INDICES,), engines="onnxruntime", fallback=False)

    with pytest.raises(LoweringError, match=r"OnnxRuntimeEngine cannot run .*InvalidArgument"):
        lowered(TOO_LARGE)


def test_with_a_fallback_the_models_own_error_comes() -> None:
    lowered = lower(embedding(), (INDICES,), engines="onnxruntime")

    with pytest.warns(RuntimeWarning, match="could not take"), pytest.raises(IndexError):
        lowered(TOO_LARGE)


def test_an_engine_that_fails_on_the_examples_loses_the_contest(tmp_path: Path) -> None:
    model, x = nn.Linear(4, 4).eval(), torch.randn(3, 4)

    engines = [OneRow(), EagerEngine()]
    lowered = lower(model, (x,), engines=engines, choose="measure", cache_dir=tmp_path)

    assert torch.equal(lowered(x), model(x))
    ((failed,),) = (part.failures for part in lowered.report.subgraphs)
    assert "InvalidArgument" in failed.reason


class FailsLater(RecordingEngine):
    """Takes the examples, and nothing of another size."""

    error: ClassVar[type[Exception]] = RuntimeError

    def _infer(self, *args: object, **kwargs: object) -> object:
        x = args[0]
        if isinstance(x, Tensor) and len(x) != 3:
            raise self.error("this size")
        return super()._infer(*args, **kwargs)


@pytest.mark.parametrize("error", [IndexError, ZeroDivisionError, RuntimeError])
def test_any_kind_of_error_of_python_falls_back(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = nn.Linear(4, 4).eval(), FailsLater()
    monkeypatch.setattr(FailsLater, "error", error)
    rows, other = torch.randn(3, 4), torch.randn(5, 4)
    shapes = ({0: Dim("rows", min=1, max=8)},)
    lowered = lower(model, (rows,), engines=engine, dynamic_shapes=shapes)
    strict = lower(model, (rows,), engines=engine, dynamic_shapes=shapes, fallback=False)

    with pytest.warns(RuntimeWarning, match=f"could not take the input .{error.__name__}"):
        assert torch.allclose(lowered(other), model(other))
    with pytest.raises(LoweringError, match=f"{error.__name__}: this size"):
        strict(other)
