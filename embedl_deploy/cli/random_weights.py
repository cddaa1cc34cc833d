"""Makes randomly initialised models behave like trained ones: numbers worth comparing."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # no public base of BatchNorm1d to 3d


def seeded(seed: int) -> AbstractContextManager[None]:
    """Returns a context in which torch draws from ``seed``; its random state comes back after."""
    return _Seeded(seed)


def fill_zero_parameters(model: nn.Module, std: float = 0.02) -> None:
    """Draws every weight that is all zeros from a normal distribution, in place.

    Heads and last norms of a block are often initialised to zero, which makes the output of an
    untrained model constant and every comparison of two such outputs meaningless.

    Args:
        model: Changed in place; biases (one dimension, name ends in ``bias``) stay zero.
        std: Standard deviation of the values drawn.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_zero = parameter.is_floating_point() and not parameter.any()
            if is_zero and not name.endswith("bias"):
                parameter.normal_(0.0, std)


def warm_up_norms(model: nn.Module, run: Callable[[nn.Module], object], rounds: int = 4) -> None:
    """Gives every batch norm the statistics of the data that ``run`` feeds, in place.

    Args:
        model: In eval mode before and after; only its batch norms are put into training mode.
        run: Calls the model once on some input.
        rounds: Calls made. The statistics are the plain average over them.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            for _ in range(rounds):
                run(model)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def random_like(example: Tensor, generator: torch.Generator, highest: int = 2) -> Tensor:
    """Returns a random tensor of the shape, dtype and device of ``example``.

    Floating-point values are standard normal. Integers that are all equal (a mask of ones) are
    kept; others are drawn from 0 up to the example's largest value, or ``highest`` if larger.
    """
    if example.is_floating_point():
        drawn = torch.randn(example.shape, generator=generator, dtype=example.dtype)
        return drawn.to(example.device)
    values = example.flatten()
    if example.dtype == torch.bool or bool((values == values[:1]).all()):
        return example.clone()
    bound = max(highest, int(example.max()) + 1)
    drawn = torch.randint(0, bound, example.shape, generator=generator, dtype=example.dtype)
    return drawn.to(example.device)


def random_inputs(
    args: tuple[object, ...], kwargs: dict[str, object], count: int, seed: int
) -> Iterable[tuple[tuple[object, ...], dict[str, object]]]:
    """Yields ``count`` inputs whose tensors look like those of ``args`` and ``kwargs``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: object) -> object:
        return random_like(value, generator) if isinstance(value, Tensor) else value

    for _ in range(count):
        yield (
            tuple(draw(value) for value in args),
            {key: draw(value) for key, value in kwargs.items()},
        )


class _Seeded(AbstractContextManager[None]):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        torch.set_rng_state(self.state)
