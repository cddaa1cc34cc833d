from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.engines.call_form import CallForm, TensorForm
from embedl_deploy.engines.file_engine import FileEngine
from embedl_deploy.engines.program import flat_program, form_of
from embedl_deploy.errors import InputError

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


def form(*sample: object) -> CallForm:
    return form_of(flat_program(Scaled().eval(), sample), sample)


class Copying(FileEngine):
    """Opens nothing and returns its inputs; runs on the CPU and on meta tensors."""

    device_types = ("cpu", "meta")

    def supports(self, node: object) -> None:
        del node

    def _open(self, path: Path, device: torch.device) -> None:
        del path, device

    def _close(self) -> None: ...

    def _run(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        return inputs[:1]

    def _count_kernels(self) -> dict[str, int]:
        return {}

    def _may_simulate(self) -> bool:
        return True


def saved(tmp_path: Path) -> dict[str, object]:
    return Copying().build(nn.Linear(3, 3).eval(), None, [(X,)], "cpu", tmp_path).to_dict()


def test_a_tensor_on_another_kind_of_device_is_refused() -> None:
    with pytest.raises(InputError, match="input 1 must lie on cpu, got a tensor on meta: move it"):
        form(X, X).bind((X, X.to("meta")), {})


def test_a_form_keeps_the_kind_of_device_where_it_was_saved() -> None:
    values = form(X, X).to_dict()
    loaded = CallForm.from_dict(values)
    for leaf in cast("list[dict[str, object]]", values["leaves"]):
        del leaf["device"]
    older = CallForm.from_dict(values)

    with pytest.raises(InputError, match="must lie on cpu"):
        loaded.bind((X, X.to("meta")), {})
    assert older.bind((X, X.to("meta")), {})[1].is_meta


def kinds(form: CallForm) -> list[str | None]:
    return [leaf.device_type for leaf in form.leaves if isinstance(leaf, TensorForm)]


def test_a_number_on_the_cpu_beside_another_device_stays_there() -> None:
    beside = form(X.to("meta"), torch.tensor(2.0))

    assert kinds(form(X, X).on("cuda")) == ["cuda", "cuda"]
    assert kinds(form(X.to("meta"), X.to("meta")).on("cpu")) == ["cpu", "cpu"]
    assert kinds(beside) == kinds(beside.on("meta")) == ["meta", "cpu"]
    assert kinds(beside.on("cpu")) == ["cpu", "cpu"]
    first, second = beside.blank(torch.device("meta"))[0]  # type: ignore[misc]  # the arguments
    assert (first.device.type, second.device.type) == ("meta", "cpu")


def test_the_form_of_a_file_follows_its_engine(tmp_path: Path) -> None:
    moved = Copying.from_dict(None, saved(tmp_path))

    moved.deploy("meta")

    assert isinstance(result := moved.infer(X.to("meta")), Tensor)
    assert result.is_meta
    with pytest.raises(InputError, match="must lie on meta, got a tensor on cpu"):
        moved.infer(X)


def test_a_file_built_for_a_device_takes_inputs_there_wherever_the_sample_lay(
    tmp_path: Path,
) -> None:
    engine = Copying().build(nn.Linear(3, 3).eval(), None, [(X,)], "meta", tmp_path)

    with pytest.raises(InputError, match="must lie on meta, got a tensor on cpu"):
        engine.infer(X)
