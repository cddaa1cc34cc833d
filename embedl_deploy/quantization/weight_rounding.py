"""Chooses the codes of a weight by what they do to the layer's output."""

from typing import cast

import torch
from torch import Tensor

from embedl_deploy.quantization.grid import QuantGrid

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it."""

_BLOCK = 128
"""Columns whose corrections are applied to the later ones together."""


def compensated_codes(weight: Tensor, scale: Tensor, grid: QuantGrid, gram: Tensor) -> Tensor:
    """Returns codes whose errors make up for one another on the inputs that a layer sees.

    Columns are rounded one after another, those with the largest inputs first; what rounding one
    does to the output is taken off the columns that are still to come. With H = E[x xᵀ] and U the
    upper Cholesky factor of H⁻¹,

        W[:, j] -= (W[:, i] - Q(W[:, i])) / U[i, i] · U[i, j]        for j > i

    A row whose nearest codes leave less error keeps them, so that no row gets worse:

        error of a row = (w - q) H (w - q)ᵀ

    Args:
        weight: Shape (groups, out, in), floating point. Groups have inputs of their own.
        scale: Shape (groups, out, 1), or (groups, out, in) where inputs have scales of their own;
            positive. The zero point is 0.
        grid: Integer codes.
        gram: H, shape (groups, in, in), symmetric and positive semidefinite. An input that is
            always zero keeps its nearest codes.

    Returns:
        Codes, float32, shape (groups, out, in).

    Source: Frantar et al. 2022, GPTQ, algorithm 1, https://arxiv.org/abs/2210.17323
    """
    weight, scale, gram = weight.double(), scale.double(), gram.double()
    order = gram.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    by_column = order[:, None, :].expand_as(weight)
    sorted_gram = gram.gather(1, order[:, :, None].expand_as(gram))
    sorted_gram = sorted_gram.gather(2, order[:, None, :].expand_as(gram))
    sorted_scale = scale.expand_as(weight).gather(2, by_column)
    codes = _in_order(weight.gather(2, by_column), sorted_scale, grid, _inverse_factor(sorted_gram))
    compensated = torch.empty_like(weight).scatter_(2, by_column, codes)
    nearest = nearest_codes(weight, scale, grid)
    is_better = output_error(weight, scale, compensated, gram) < output_error(
        weight, scale, nearest, gram
    )
    return torch.where(is_better[:, :, None], compensated, nearest).float()


def output_error(weight: Tensor, scale: Tensor, codes: Tensor, gram: Tensor) -> Tensor:
    """Returns the mean squared error of each output that ``codes`` leave, shape (groups, out)."""
    lost = weight.double() - codes.double() * scale.double()
    return ((lost @ gram.double()) * lost).sum(-1)


def _in_order(weight: Tensor, scale: Tensor, grid: QuantGrid, factor: Tensor) -> Tensor:
    """Returns codes of the columns from left to right; overwrites ``weight``."""
    codes, count = torch.empty_like(weight), weight.shape[-1]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = torch.empty_like(weight[..., start:end])
        for column in range(start, end):
            values, steps = (each[..., column : column + 1] for each in (weight, scale))
            rounded = nearest_codes(values, steps, grid)
            codes[..., column : column + 1] = rounded
            row = factor[:, column : column + 1, column:end]
            error = (values - rounded * steps) / row[..., :1]
            weight[..., column:end] -= error * row
            errors[..., column - start : column - start + 1] = error
        weight[..., end:] -= errors @ factor[:, start:end, end:]
    return codes


def nearest_codes(weight: Tensor, scale: Tensor, grid: QuantGrid) -> Tensor:
    """Returns the codes next to each value, in the dtype of ``weight``."""
    return torch.round(weight / scale).clamp(grid.quant_min, grid.quant_max)


def _inverse_factor(gram: Tensor) -> Tensor:
    """Returns the upper Cholesky factor of the damped inverse, shape (groups, in, in)."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    damping = _DAMPING * diagonal.mean(-1, keepdim=True)
    # Where no input was ever other than zero anything will do.
    damped = gram + torch.diag_embed(torch.where(damping > 0, damping, 1.0).expand_as(diagonal))
    return _lower_factor(torch.cholesky_inverse(_lower_factor(damped))).mT


def _lower_factor(matrices: Tensor) -> Tensor:
    factor, _ = torch.ops.aten.linalg_cholesky_ex.default(matrices, check_errors=True)
    return cast("Tensor", factor)
