"""Inputs and sizes that the small Hugging Face models share."""

from collections.abc import Mapping

import torch
from torch import Tensor

TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
WIDE = {**TEXT, "intermediate_size": 128}
DECODER = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False}
IMAGE = {
    **{k: v for k, v in WIDE.items() if k != "vocab_size"},
    "image_size": 32,
    "patch_size": 8,
}


def ids(length: int = 16) -> Tensor:
    """Returns token ids of two sentences."""
    return torch.randint(3, 100, (2, length), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> Tensor:
    """Returns standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def text() -> Mapping[str, object]:
    """Returns sentences with their mask."""
    return {"input_ids": ids(), "attention_mask": torch.ones(2, 16, dtype=torch.long)}


def plain_text() -> Mapping[str, object]:
    """Returns sentences alone."""
    return {"input_ids": ids()}


def pair() -> Mapping[str, object]:
    """Returns sentences for an encoder and a decoder."""
    return {"input_ids": ids(), "decoder_input_ids": ids(8)}


def image() -> Mapping[str, object]:
    """Returns two images of 32 × 32."""
    return {"pixel_values": noise(2, 3, 32, 32)}


def large_image() -> Mapping[str, object]:
    """Returns one image of 64 × 64."""
    return {"pixel_values": noise(1, 3, 64, 64)}


def photo() -> Mapping[str, object]:
    """Returns two images of 128 × 128."""
    return {"pixel_values": noise(2, 3, 128, 128)}


def wave() -> Mapping[str, object]:
    """Returns a quarter of a second of sound."""
    return {"input_values": noise(1, 4000)}
