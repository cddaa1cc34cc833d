"""Tells whether the weights of a module are still what they were."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from embedl_deploy.errors import CheckpointError

WeightsKey = Mapping[str, tuple[int, int, str]]


def weights_key(module: nn.Module) -> WeightsKey:
    """Returns what changes when a weight is moved, replaced or written to in place."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: (tensor.data_ptr(), tensor._version, str(tensor.dtype)) for name, tensor in tensors
    }


def weights_sum(module: nn.Module) -> str:
    """Returns the SHA-256 of the names, shapes and values of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.is_meta:
            raise CheckpointError(f"{name} has no values, it is on the meta device: load them")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
