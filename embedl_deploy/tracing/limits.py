# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Names what an eval-mode trace cannot hold: it says so instead of training another model."""

from collections.abc import Container

from torch import nn

from embedl_deploy.tracing.program import modules_of

_STOCHASTIC = ("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d", "LayerDrop")


def training_limits(origin: nn.Module | None, kept: Container[str]) -> list[str]:
    """Returns one sentence per kind of randomness of ``origin`` that the graph does not hold.

    Args:
        origin: The model that was traced.
        kept: Paths of the modules that the graph calls.
    """
    if origin is None:
        return []
    lost: dict[str, list[str]] = {}
    for path, module in modules_of(origin):
        kind = _kind(module)
        if kind is not None and path not in kept and not module.training:
            lost.setdefault(kind, []).append(path)
    return [
        f"train() on the result does not bring back {kind} of {len(paths)} modules, "
        f"{paths[0]!r} first: the model was traced in eval mode"
        for kind, paths in lost.items()
    ]


def _kind(module: nn.Module) -> str | None:
    if type(module).__name__ in _STOCHASTIC:
        return "stochastic depth"
    if isinstance(module, nn.MultiheadAttention) and module.dropout > 0:
        return "dropout inside attention"
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
        return "dropout"
    return None
