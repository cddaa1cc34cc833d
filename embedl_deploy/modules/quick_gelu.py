"""The approximation of GELU that CLIP is trained with."""

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """Computes ``x · σ(1.702 x)``, elementwise.

    Source: Hendrycks and Gimpel 2016, section 2, https://arxiv.org/abs/1606.08415
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation of ``x``, any shape."""
        return x * torch.sigmoid(1.702 * x)
