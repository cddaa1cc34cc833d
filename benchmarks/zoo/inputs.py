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

BRANCHES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
SEQUENCES = {**BRANCHES, "vocab_size": 128, "use_cache": False, "pad_token_id": 0}
SPEECH = {
    **WIDE,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SMALL_RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 32, 32],
    "depths": [1, 1, 1, 1],
}
SMALL_SWIN = {
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "image_size": 64,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
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


def masked_pair() -> Mapping[str, object]:
    """Returns sentences for an encoder and a decoder, with their masks."""
    masks = {"attention_mask": (2, 16), "decoder_attention_mask": (2, 8)}
    return {**pair(), **{name: torch.ones(n, dtype=torch.long) for name, n in masks.items()}}


def captioned() -> Mapping[str, object]:
    """Returns two images of 32 × 32, each with a sentence."""
    return {**image(), **text()}


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
