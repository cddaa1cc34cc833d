"""Finds GELU that a model spells as single operations."""

import math

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.patterns.literals import about
from embedl_deploy.rewriting import (
    Input,
    Named,
    OneOf,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Tree,
)

_ATEN = torch.ops.aten
_X = Named("x", Input())


def _half_of_x_times(factor: Tree) -> Tree:
    """Returns x / 2 · factor, multiplied in any order."""
    half = OneOf(
        Op(_ATEN.mul.Tensor, _X, about("half", 0.5)),
        Op(_ATEN.div.Tensor, _X, about("two", 2.0)),
    )
    return OneOf(
        Op(_ATEN.mul.Tensor, half, factor),
        Op(_ATEN.mul.Tensor, _X, Op(_ATEN.mul.Tensor, factor, about("half", 0.5))),
        Op(_ATEN.mul.Tensor, Op(_ATEN.mul.Tensor, _X, factor), about("half", 0.5)),
        Op(_ATEN.div.Tensor, Op(_ATEN.mul.Tensor, _X, factor), about("two", 2.0)),
    )


def _one_plus(value: Tree) -> Tree:
    return Op(_ATEN.add.Tensor, value, about("one", 1.0))


def _tanh_argument() -> Tree:
    """Returns √(2/π) · (x + 0.044715 x³), or √(2/π) · x · (1 + 0.044715 x²)."""
    cube = OneOf(
        Op(_ATEN.pow.Tensor_Scalar, _X, about("three", 3.0)),
        Op(_ATEN.mul.Tensor, Op(_ATEN.mul.Tensor, _X, _X), _X),
    )
    scaled_x = Op(_ATEN.mul.Tensor, _X, about("cubic", 0.044715))
    scaled_cube = OneOf(
        Op(_ATEN.mul.Tensor, cube, about("cubic", 0.044715)),
        Op(_ATEN.mul.Tensor, Op(_ATEN.mul.Tensor, scaled_x, _X), _X),
    )
    sum_with_cube = Op(_ATEN.add.Tensor, _X, scaled_cube)
    slope = about("slope", math.sqrt(2.0 / math.pi))
    square = OneOf(
        Op(_ATEN.mul.Tensor, scaled_x, _X),
        Op(_ATEN.mul.Tensor, Op(_ATEN.mul.Tensor, _X, _X), about("cubic", 0.044715)),
        Op(
            _ATEN.mul.Tensor,
            Op(_ATEN.pow.Tensor_Scalar, _X, about("two", 2.0)),
            about("cubic", 0.044715),
        ),
    )
    return OneOf(
        Op(_ATEN.mul.Tensor, sum_with_cube, slope),
        Op(_ATEN.mul.Tensor, Op(_ATEN.mul.Tensor, _X, slope), _one_plus(square)),
    )


def _erf_argument() -> Tree:
    """Returns x / √2."""
    return OneOf(
        Op(_ATEN.div.Tensor, _X, about("root", math.sqrt(2.0))),
        Op(_ATEN.mul.Tensor, _X, about("inverse root", math.sqrt(0.5))),
    )


class RecomposeGelu(Pattern):
    """Replaces x / 2 · (1 + erf(x / √2)), or its tanh approximation, with one ``nn.GELU``.

    Outputs move by rounding only: the same formula, evaluated by one kernel.

    Source: Hendrycks and Gimpel 2016, section 2, https://arxiv.org/abs/1606.08415
    """

    phase = Phase.CONVERSION
    tree = OneOf(
        _half_of_x_times(_one_plus(Named("tanh", Op(nn.Tanh, _tanh_argument())))),
        _half_of_x_times(_one_plus(Op(_ATEN.erf.default, _erf_argument()))),
    )

    def replace(self, match: PatternMatch) -> Node:
        gelu = nn.GELU(approximate="tanh" if "tanh" in match else "none")
        gelu.train(match.graph_module.training)
        return match.call_module(gelu, match["x"])
