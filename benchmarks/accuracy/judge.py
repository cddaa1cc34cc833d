"""How far quantized outputs are from fp32's, and whether one tool is worse than another."""

import math
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

    per_input: Tensor
    """Squared error of each input over the mean squared norm, shape (inputs,)."""

    def as_json(self) -> dict[str, float]:
        """Returns the figures."""
        return {
            "noise": self.noise,
            "snr_db": self.snr_db,
            "kl": self.kl,
            "top1_agreement": self.top1_agreement,
        }


def score(outputs: Tensor, reference: Tensor) -> Score:
    """Returns what rounding cost; both of shape (inputs, …)."""
    found, wanted = (tensor.double().flatten(1) for tensor in (outputs, reference))
    per_input = (found - wanted).square().sum(1) / wanted.square().sum(1).mean()
    noise = math.sqrt(float(per_input.mean()))
    divergence = functional.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"
    )
    agreement = (found.argmax(1) == wanted.argmax(1)).double().mean()
    decibels = -20 * math.log10(noise) if noise else math.inf
    return Score(noise, decibels, float(divergence), float(agreement), per_input)


def is_significantly_worse(ours: Tensor, peer: Tensor, *, seed: int = 0) -> bool:
    """Tells whether ours has the larger mean squared error, by a paired bootstrap at 95 %.

    Args:
        ours: Squared error per input.
        peer: That of the peer on the same inputs.
        seed: Of the draws.

    Source: Efron, Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentiles).
    """
    difference = ours - peer
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(difference), (DRAWS, len(difference)), generator=generator)
    means = difference[draws].mean(1)
    return float(torch.quantile(means, 0.025)) > 0.0
