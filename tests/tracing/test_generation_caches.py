"""Language models that keep keys and values between calls."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from embedl_deploy import transform
from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas
from embedl_deploy.errors import TracingError
from embedl_deploy.tracing import trace

define_torchvision_schemas()
transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 60, (2, 5), generator=torch.Generator().manual_seed(0))
NEXT = torch.randint(0, 60, (2, 1), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


def language_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=64, n_layer=2, n_embd=32, n_head=4)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).eval()


def tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_step_takes_and_returns_the_cache_as_the_model_does(family: str) -> None:
    model = language_model(family)
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
    prefill = transform(model, (IDS,), {"use_cache": True}, backend="tensorrt")
    given = {"past_key_values": copy.deepcopy(cache), "use_cache": True}
    step = transform(model, (NEXT,), given, backend="tensorrt")

    with torch.no_grad():
        made = prefill.model(IDS, use_cache=True).past_key_values
        found = step.model(NEXT, past_key_values=made, use_cache=True)
        expected = model(NEXT, past_key_values=copy.deepcopy(cache), use_cache=True)

    assert step.report.counts()["fuse-attention"] == 2
    assert type(found) is type(expected)
    assert type(found.past_key_values) is type(expected.past_key_values)
    assert found.past_key_values.get_seq_length() == 6
    for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_cache_that_is_written_in_place_is_refused_with_the_line() -> None:
    model = language_model("llama")
    cache = transformers.StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        model(IDS, past_key_values=cache, cache_position=torch.arange(5))

    with pytest.raises(TracingError, match=r"writes to its input 'past_key_values.*index_copy_"):
        trace(model, (NEXT,), {"past_key_values": cache, "cache_position": torch.tensor([5])})
