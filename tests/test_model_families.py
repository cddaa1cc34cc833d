"""Whole models of seven families: same output, same keys, same graph in every process."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from embedl_deploy import transform
from embedl_deploy.cli.model_sources import LoadedModel, load_model
from embedl_deploy.graph import graph_text
from embedl_deploy.graph.distance import relative_error

MODELS = (
    "torchvision:resnet50",
    "torchvision:mobilenet_v3_large",
    "torchvision:convnext_tiny",
    "torchvision:swin_t",
    "torchvision:vit_b_16",
    "transformers:bert-tiny",
    "transformers:gpt2-tiny",
)
BACKENDS = ("inductor", "tensorrt")

pytestmark = pytest.mark.slow


def printed(source: str) -> str:
    """Returns the graphs that the two backends make of a model."""
    loaded = load_model(source)
    return "\n".join(
        graph_text(transform(loaded.model, loaded.args, loaded.kwargs, backend=backend).model)
        for backend in BACKENDS
    )


def outputs(model: nn.Module, loaded: LoadedModel) -> list[Tensor]:
    with torch.no_grad():
        found = model(*loaded.args, **loaded.kwargs)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("source", MODELS)
def test_the_output_the_keys_and_the_parameters_are_the_models(source: str, backend: str) -> None:
    loaded = load_model(source)
    keys = list(loaded.model.state_dict())
    parameters = dict(loaded.model.named_parameters())

    result = transform(loaded.model, loaded.args, loaded.kwargs, backend=backend)

    assert result.report.applied_count > 0
    pairs = zip(outputs(result.model, loaded), outputs(loaded.model, loaded), strict=True)
    assert max(relative_error(found, expected) for found, expected in pairs) <= 1e-4
    renamed = result.report.key_map
    assert [key for key in keys if key not in renamed] == [
        key for key in result.model.state_dict() if key in keys
    ]
    kept = {name: p for name, p in result.model.named_parameters() if name in parameters}
    assert all(parameters[name] is parameter for name, parameter in kept.items())
    assert set(parameters) - set(kept) <= set(renamed)


@pytest.mark.parametrize("source", MODELS)
def test_the_printed_graph_does_not_depend_on_the_hash_seed(source: str) -> None:
    texts = {
        subprocess.run(
            [sys.executable, __file__, source],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }

    assert len(texts) == 1
    assert texts.pop().count("\n") > 10


if __name__ == "__main__":
    sys.stdout.write(printed(sys.argv[1]))
