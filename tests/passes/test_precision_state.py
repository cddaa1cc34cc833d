import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.errors import CheckpointError, SearchError
from embedl_deploy.passes.precision_groups import PrecisionGroup
from embedl_deploy.passes.precision_state import fingerprint_of
from embedl_deploy.quantize import PrecisionSearchResult, QuantConfig, search_precision
from embedl_deploy.transformation import transform

ROWS = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0))


class Streamed:
    """Batches made as they are asked for."""

    def __init__(self, size: int = 16) -> None:
        self.size, self.passes = size, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        for seed in range(32):
            yield torch.randn(4, self.size, generator=torch.Generator().manual_seed(seed))


def network() -> GraphModule:
    torch.manual_seed(0)
    layers = (nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    return transform(nn.Sequential(*layers).eval(), (ROWS[0],), backend=INDUCTOR).model


def always_one(model: nn.Module) -> float:
    del model
    return 1.0


def one_each(quantized: GraphModule, groups: Sequence[PrecisionGroup]) -> list[float]:
    del quantized
    return [1.0] * len(groups)


def searched(data: object, state: Path | None = None) -> PrecisionSearchResult:
    return search_precision(
        network(),
        data,  # pyright: ignore[reportArgumentType]  # as a user may
        always_one,
        max_drop=1.0,
        args=(ROWS[0],),
        costs=one_each,
        state=state,
    )


def test_the_digest_of_the_data_is_made_batch_by_batch() -> None:
    data, batch_bytes = Streamed(2**14), 4 * 2**14 * 4
    graph = network()
    fingerprint_of(graph, data, {})

    tracemalloc.start()
    fingerprint = fingerprint_of(graph, data, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < batch_bytes
    assert fingerprint == fingerprint_of(graph, list(data), {})
    assert fingerprint["data"] != fingerprint_of(graph, list(data)[1:], {})["data"]
    assert fingerprint["data"] != fingerprint_of(graph, list(data)[::-1], {})["data"]


def test_dtype_shape_and_contents_of_the_data_count() -> None:
    zeros = torch.zeros(2, 3)
    others = (zeros.to(torch.int32), zeros.t(), zeros + 1.0, zeros[:, :0], "a", None)

    digests = [fingerprint_of(network(), [one], {})["data"] for one in (zeros, *others)]

    assert len(set(digests)) == len(digests)


def test_data_are_read_for_a_digest_only_where_a_state_is_kept(tmp_path: Path) -> None:
    kept, forgotten = Streamed(), Streamed()

    expected = searched(kept, tmp_path / "state")

    assert searched(forgotten) == expected
    assert forgotten.passes == kept.passes - 1


def test_a_shuffled_loader_cannot_go_on_and_is_told_why(tmp_path: Path) -> None:
    rows = TensorDataset(ROWS.flatten(0, 1))
    in_order, shuffled = DataLoader(rows, 8), DataLoader(rows, 8, shuffle=True)
    searched(in_order, tmp_path / "state")
    searched(in_order, tmp_path / "state")

    with pytest.raises(CheckpointError, match=r"another data \(a loader that shuffles .*=False"):
        searched(shuffled, tmp_path / "state")


def test_says_so_where_no_choice_saves_bytes() -> None:
    config = QuantConfig(weight=None, smooth=None)

    with pytest.raises(SearchError, match="is 2176 with 0 of 2 groups quantized, as no choice"):
        search_precision(network(), list(ROWS), always_one, max_bytes=100, config=config)
