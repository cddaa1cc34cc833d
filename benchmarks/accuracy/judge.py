"""How far quantized outputs are from fp32's, and whether one tool is worse than another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Score:
    """What rounding cost on one row. Outputs have shape (inputs, features)."""

    noise: float
    """√(Σ(q - r)² / Σr²), the relative error over all inputs."""

    snr_db: float
    """-20 · log10(noise)."""

    kl: float
    """Mean Kullback-Leibler divergence from fp32's class probabilities, in nats."""

    top1_agreement: float
    """Share of inputs whose largest output is fp32's."""

    losses: Mapping[str, Tensor]
    """What each input lost by every measure, shape (inputs,): ``noise`` is its squared error over
    the mean squared norm, ``kl`` its divergence, ``top1`` 1 where the answer is wrong."""

    def as_json(self) -> dict[str, float]:
        """Returns the figures."""
        return {
            "noise": self.noise,
            "snr_db": self.snr_db,
            "kl": self.kl,
            "top1_agreement": self.top1_agreement,
        }


def score(outputs: Tensor, reference: Tensor, truth: Tensor | None = None) -> Score:
    """Returns what rounding cost.

    Args:
        outputs: Shape (inputs, …).
        reference: What fp32 gives for the same inputs.
        truth: The right class of each input; fp32's largest output if None.
    """
    found, wanted = (tensor.double().flatten(1) for tensor in (outputs, reference))
    squares = (found - wanted).square().sum(1) / wanted.square().sum(1).mean()
    noise = math.sqrt(float(squares.mean()))
    divergence = functional.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    differs = found.argmax(1) != wanted.argmax(1)
    is_wrong = differs if truth is None else found.argmax(1) != truth
    return Score(
        noise,
        -20 * math.log10(noise) if noise else math.inf,
        float(divergence.mean()),
        1.0 - float(differs.double().mean()),
        {"noise": squares, "kl": divergence, "top1": is_wrong.double()},
    )


def is_significantly_worse(ours: Tensor, peer: Tensor, *, seed: int = 0) -> bool:
    """Tells whether ours has the larger mean loss, by a paired bootstrap at 95 %.

    Args:
        ours: Loss of each input.
        peer: That of the peer on the same inputs.
        seed: Of the draws.

    Source: Efron, Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentiles).
    """
    difference = ours - peer
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(difference), (DRAWS, len(difference)), generator=generator)
    means = difference[draws].mean(1)
    return float(torch.quantile(means, 0.025)) > 0.0
