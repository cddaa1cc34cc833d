"""The models of the comparison with their calibration and test inputs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.accuracy.digits_nets import NETS, trained
from embedl_deploy.cli.demo.digits import load_digits
from embedl_deploy.cli.demo.sentences import load_minilm, standard_library_docstrings, tokenize
from embedl_deploy.cli.model_sources import load_model

FOLDS = 5
CALIBRATION_IMAGES = 128
TEXTS, CALIBRATION_TEXTS, TOKENS = 2000, 96, 64
RANDOM_INPUTS, RANDOM_CALIBRATION_INPUTS = 32, 16
RANDOM = {
    "ViT-B/16": "torchvision:vit_b_16",
    "Swin-T": "torchvision:swin_t",
    "BERT-base": "transformers:bert-base",
    "ConvNeXt-T": "torchvision:convnext_tiny",
}
"""With random weights, norms warmed up, and a few channels of every norm far above the rest."""

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """One trained or random model, and what it is judged on."""

    row: str
    """Subjects of one row are judged together: the folds of a net."""

    part: str
    model: nn.Module
    calibration: list[Inputs]
    test: list[Inputs]
    is_transformer: bool
    labels: Tensor | None = None
    is_encoder: bool = False
    """Whether outputs are embeddings, judged by retrieval too."""

    gives_logits: bool = True
    """Whether outputs are scores of classes, which a divergence can be taken of."""


ROWS = ("MiniLM", *(f"digits {name}" for name in NETS), *RANDOM)


def subjects_of(row: str) -> Iterator[Subject]:
    """Yields the subjects of one of ``ROWS``, each made when it is asked for."""
    if row == "MiniLM":
        yield _minilm()
    elif row in RANDOM:
        yield _random(row, RANDOM[row])
    else:
        yield from _folds(row.removeprefix("digits "))


def _folds(name: str) -> Iterator[Subject]:
    digits = load_digits()
    images = torch.cat([digits.train_images, digits.test_images])
    labels = torch.cat([digits.train_labels, digits.test_labels])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for fold in range(FOLDS):
        held_out = order[fold::FOLDS]
        rest = order[~torch.isin(order, held_out)]
        yield Subject(
            row=f"digits {name}",
            part=f"fold {fold + 1}",
            model=trained(name, images[rest], labels[rest], seed=fold),
            calibration=[(image,) for image in images[rest[:CALIBRATION_IMAGES]].unsqueeze(1)],
            test=[(image,) for image in images[held_out].unsqueeze(1)],
            is_transformer=name == "transformer",
            labels=labels[held_out],
        )


def _minilm() -> Subject:
    texts = standard_library_docstrings(TEXTS + CALIBRATION_TEXTS)
    # Clones: a view would take all texts along when a row is sent to another process.
    rows = [
        (ids[:, :TOKENS].clone(), mask[:, :TOKENS].clone()) for ids, mask in tokenize(texts).rows()
    ]
    every = len(rows) // CALIBRATION_TEXTS
    chosen = range(0, every * CALIBRATION_TEXTS, every)
    return Subject(
        row="MiniLM",
        part="docstrings",
        model=load_minilm(),
        calibration=[rows[index] for index in chosen],
        test=[row for index, row in enumerate(rows) if index not in chosen],
        is_transformer=True,
        is_encoder=True,
        gives_logits=False,
    )


def _random(name: str, source: str) -> Subject:
    loaded = load_model(source)
    if hasattr(loaded.model, "pooler"):
        loaded.model.pooler = None  # nothing reads it, and nncf's torch.fx form fails on such
    _make_heavy_tailed(loaded.model)
    inputs = [
        (*args, *kwargs.values())
        for args, kwargs in loaded.random_inputs(RANDOM_INPUTS + RANDOM_CALIBRATION_INPUTS)
    ]
    by_position = _Positional(loaded.model, tuple(loaded.kwargs)) if loaded.kwargs else loaded.model
    return Subject(
        row=name,
        part="random weights",
        model=by_position.eval(),
        calibration=inputs[:RANDOM_CALIBRATION_INPUTS],
        test=inputs[RANDOM_CALIBRATION_INPUTS:],
        is_transformer=True,
        gives_logits=not loaded.kwargs,
    )


class _Positional(nn.Module):
    """Takes keyword inputs by position and gives the first output: what every tool can take."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)))[0]


def _make_heavy_tailed(model: nn.Module, share: float = 0.02, factor: float = 20.0) -> None:
    """Multiplies a few channels of every layer norm's weight, as trained transformers have it.

    Source: Xiao et al. 2023, SmoothQuant, figure 2, https://arxiv.org/abs/2211.10438
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and module.weight is not None:
                count = max(1, int(share * module.weight.numel()))
                chosen = torch.randperm(module.weight.numel(), generator=generator)[:count]
                spread = 1.0 + (factor - 1.0) * torch.rand(count, generator=generator)
                module.weight[chosen] *= spread
