"""Tensors as safetensors; several names of one tensor are written once."""

import json
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from embedl_deploy.errors import CheckpointError

_TIES = "ties"


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns ``tensors`` as a safetensors file.

    Raises:
        CheckpointError: A tensor is sparse, or of a class or dtype that the format lacks.
    """
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if type(tensor.data) is not Tensor or tensor.is_sparse:
            raise CheckpointError(
                f"{name} is a {type(tensor).__name__}, which cannot be saved as plain numbers"
            )
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.numel() > 0)
        owner = first.setdefault(same if tensor.numel() else (name,), name)
        if owner != name:
            ties[name] = owner
        else:
            # A copy: two views of one storage are no tie, and the format refuses them.
            kept[name] = tensor.detach().cpu().contiguous().clone()
    try:
        return save(kept, {_TIES: json.dumps(ties, sort_keys=True)})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"the tensors cannot be saved: {error}") from error


def tensors_from_bytes(content: bytes) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, ties restored.

    Raises:
        CheckpointError: The bytes are damaged.
    """
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        ties = json.loads(header.get("__metadata__", {}).get(_TIES, "{}"))
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the saved tensors are damaged: {error}") from error
    for name, owner in ties.items():
        if owner not in tensors:
            raise CheckpointError(f"the saved tensors lack {owner!r}")
        tensors[name] = tensors[owner]
    return tensors
