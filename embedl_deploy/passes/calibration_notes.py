"""What the reader of a report should know of the data that a model was calibrated on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

ENOUGH_SAMPLES = 32
"""Fewer samples than this are named in the report: extremes still move with each new one."""


@dataclass
class Count:
    """How much data a model has seen."""

    passes: int = 0
    """Forward passes."""

    samples: int = 0
    """Rows of the first dimension of the first tensor of each pass."""


def samples_in(inputs: Iterable[object]) -> int:
    """Returns the size of the first dimension of the first tensor in ``inputs``."""
    tensors = (leaf for leaf in tree_leaves(list(inputs)) if isinstance(leaf, Tensor))
    return next((len(tensor) for tensor in tensors if tensor.dim() > 0), 1)


def calibration_notes(
    model: nn.Module, stubs: Sequence[QuantStub], count: Count, processes: int = 1
) -> Iterator[str]:
    """Yields a sentence each on the amount of data, constant activations and empty channels.

    Args:
        model: Observed, and not finished yet.
        stubs: Its quantizers.
        count: What they have seen.
        processes: How many processes have shared the data.
    """
    among = f" in {processes} processes" if processes > 1 else ""
    yield f"{len(stubs)} activations calibrated on {count.passes} forward passes{among}"
    if stubs and count.samples < ENOUGH_SAMPLES:
        yield (
            f"only {count.samples} samples in {count.passes} forward passes: ranges of fewer than "
            f"{ENOUGH_SAMPLES} samples depend on which they are"
        )
    constant = [
        stub.site for stub in stubs if stub.observer is not None and stub.observer.is_constant
    ]
    if constant:
        yield (
            f"{len(constant)} activations had one value in all of the data, the first {constant[0]}"
        )
    yield from _empty_channels(model)


def _empty_channels(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        quantizer = module.weight_fake_quant if isinstance(module, WeightedFused) else None
        if not isinstance(quantizer, WeightFakeQuantize) or quantizer.axis is None:
            continue
        assert isinstance(module, WeightedFused)
        weight = module.folded_weight_and_bias()[0].detach()
        rows = weight.movedim(quantizer.axis, 0).flatten(1)
        empty = int((rows == 0).all(1).sum())
        if empty:
            yield f"{quantizer.site}: {empty} of {len(rows)} output channels are zero throughout"
