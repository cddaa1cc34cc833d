from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.passes.precision_groups import groups_of
from embedl_deploy.passes.quantization_quality import stored_bytes
from embedl_deploy.quantize import (
    ModulesToSkip,
    QuantConfig,
    convert,
    quantization_report,
    quantize,
)

PLAIN = QuantConfig(smooth=None, bias_correction=False)


class Language(nn.Module):
    """A language model of one layer, whose head has the weight of its embedding."""

    def __init__(self, *, gathered: bool) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(50, 8), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.gathered = gathered

    def forward(self, words: Tensor) -> Tensor:
        rows = self.head.weight[words] if self.gathered else self.embedding(words)
        return self.head(torch.relu(self.body(rows)))


@pytest.mark.parametrize("gathered", [False, True])
def test_a_weight_that_an_embedding_reads_too_is_stored_twice(gathered: bool) -> None:
    torch.manual_seed(0)
    words = torch.randint(0, 50, (2, 5))
    model = Language(gathered=gathered).eval()
    config = QuantConfig(smooth=None, bias_correction=False)
    without_head = replace(config, skip=ModulesToSkip(weight={"head"}, stub={"head"}))

    whole, part = (
        quantize(model, (words,), one, [words], backend=INDUCTOR) for one in (config, without_head)
    )

    assert stored_bytes(whole) == {"float32": 4 * 400, "int8": 400 + 64 + 4 * (50 + 8)}
    floats = [value for value in convert(whole).state_dict().values() if value.dim() == 2]
    assert sum(value.nbytes for value in floats) == 4 * 400 + 400 + 64
    saved = {group.name: group.saved_bytes for group in groups_of(whole).groups}
    difference = sum(stored_bytes(part).values()) - sum(stored_bytes(whole).values())
    assert saved["head"] == difference == -(400 + 4 * 50)
    assert saved["body"] == 3 * 64 - 4 * 8


class Looks(nn.Module):
    """Attention whose keys and values are not its queries: a weight in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attention(x, y, y)[0]


ROWS = torch.randn(2, 2, 3, 16, generator=torch.Generator().manual_seed(0)).unbind()


def test_a_weight_in_parts_is_stored_once() -> None:
    model = quantize(Looks().eval(), ROWS, PLAIN, [ROWS], backend=INDUCTOR)

    report = quantization_report(model, [ROWS])

    assert report.bytes == {"int8": 4 * 16 * 16 + 4 * 4 * 16}


def test_a_part_in_float_keeps_the_whole() -> None:
    part = "attention.in_proj"
    config = replace(PLAIN, skip=ModulesToSkip(weight={part}, stub={part}))
    model = quantize(Looks().eval(), ROWS, config, [ROWS], backend=INDUCTOR)

    found = stored_bytes(model)

    assert found == {"float32": 4 * 3 * 256, "int8": 3 * 256 + 4 * 3 * 16}
    floats = [value for value in convert(model).state_dict().values() if value.dim() == 2]
    assert sum(value.nbytes for value in floats) == 4 * 3 * 256 + 3 * 256
