"""What torchao makes of the weights of linear layers, and how these weights are saved and read."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from embedl_deploy.engines.inductor_build import first_line
from embedl_deploy.engines.linear_layers import LinearLayers, linear_layers_of
from embedl_deploy.engines.torchao_presets import layer_config, unfit_device
from embedl_deploy.errors import BuildError

Filter = Callable[[nn.Module, str], bool]


def quantize_layers(layers: LinearLayers, config: object, choose: Filter | None) -> None:
    """Quantizes the weights of the chosen linear layers, in place.

    Args:
        layers: A copy of a module; its own layers are replaced.
        config: A configuration of torchao.
        choose: Which layers, by (module, path in the model); None: all.

    Raises:
        BuildError: There is nothing to quantize, or torchao refuses a layer; the message names its
            weight and shape.
    """
    from torchao.quantization import quantize_

    configs = {
        name: layer_config(config, layers.paths[name])
        for name, layer in layers.by_name.items()
        if choose is None or choose(layer, layers.paths[name])
    }
    configs = {name: own for name, own in configs.items() if own is not None}
    if not configs:
        raise BuildError(_nothing_chosen(layers))
    for name, own in configs.items():
        reason = unfit_weight(layers.paths[name], layers.by_name[name].weight, own)
        if reason is not None:
            raise BuildError(reason)
    apply = cast("Callable[..., None]", quantize_)
    for name, own in configs.items():
        try:
            apply(layers.module, own, filter_fn=partial(_is_named, name))
        except Exception as error:
            weight = layers.by_name[name].weight
            raise BuildError(
                f"torchao cannot quantize {_weight_text(layers.paths[name], weight)} with "
                f"{type(own).__name__}: {first_line(error)}"
            ) from error


def _is_named(wanted: str, _: nn.Module, name: str) -> bool:
    return name == wanted


def saved_weights(module: nn.Module) -> dict[str, object]:
    """Returns the quantized weights of ``module`` as plain tensors and texts.

    Raises:
        ValueError: A weight is of a class that torchao cannot write as plain tensors.
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    weights = {
        f"{name}.weight": layer.weight.detach()
        for name, layer in linear_layers_of(module).items()
        if not _is_plain(layer.weight)
    }
    flatten = cast("Callable[[object], tuple[object, object]]", flatten_tensor_state_dict)
    try:
        tensors, texts = flatten(weights)
    except ValueError as error:
        kinds = sorted({type(weight).__name__ for weight in weights.values()})
        raise ValueError(f"weights of class {', '.join(kinds)} cannot be saved: {error}") from error
    return {"tensors": tensors, "texts": texts}


def put_saved_weights(module: nn.Module, saved: Mapping[str, object]) -> None:
    """Gives the layers of ``module`` the weights that ``saved_weights`` returned.

    Raises:
        ValueError: They are not those of this module.
    """
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    unflatten = cast(
        "Callable[[object, object], tuple[dict[str, Tensor], dict[str, Tensor]]]",
        unflatten_tensor_state_dict,
    )
    weights, unread = unflatten(saved["tensors"], saved["texts"])
    if unread:
        raise ValueError(f"the quantized weights are incomplete: {', '.join(sorted(unread))}")
    for name, weight in weights.items():
        path = name.removesuffix(".weight")
        layer = _layer_at(module, path)
        if layer is None or layer.weight.shape != weight.shape:
            raise ValueError(
                f"the module has no linear layer {path!r} with a weight {list(weight.shape)}: give "
                "from_dict() the module that the engine was built from"
            )
        layer.weight = nn.Parameter(weight, requires_grad=False)


def _layer_at(module: nn.Module, path: str) -> nn.Linear | None:
    try:
        found = module.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Linear) else None


def _nothing_chosen(layers: LinearLayers) -> str:
    if not layers.by_name:
        return "torchao quantizes linear layers, and the module has none"
    names = ", ".join(list(layers.paths.values())[:5])
    count = len(layers.by_name)
    return (
        f"filter_fn, or the configuration, chooses none of the {count} linear layers ({names}, ...)"
    )


def unfit_weight(path: str, weight: Tensor, config: object) -> str | None:
    """Returns why a weight (out, in) cannot be quantized so, for reasons known before trying.

    torchao itself leaves such a layer in float without a word, or stops at it.
    """
    kind, text = type(config).__name__, _weight_text(path, weight)
    if kind in _ONLY_BFLOAT16 and weight.dtype is not torch.bfloat16:
        return f"{kind} takes weights in torch.bfloat16, {text} is in {weight.dtype}"
    group = getattr(config, _GROUP_FIELD.get(kind, ""), _GROUP_SIZE.get(kind))
    if isinstance(group, int) and weight.shape[-1] % group:
        return f"{kind} takes inputs in groups of {group}, which do not divide {text}"
    unfit = unfit_device(config, weight.device)
    return None if unfit is None else f"{unfit}, for {text}"


_ONLY_BFLOAT16 = frozenset({"MXDynamicActivationMXWeightConfig"})
_GROUP_FIELD = {
    "Int4WeightOnlyConfig": "group_size",
    "MXDynamicActivationMXWeightConfig": "block_size",
}
_GROUP_SIZE = {"NVFP4DynamicActivationNVFP4WeightConfig": 16}
"""Fixed by the format, as torchao's ``nvfp4_tensor.py`` says."""


def _is_plain(weight: Tensor) -> bool:
    return type(weight.data) is Tensor or type(weight) is nn.Parameter


def _weight_text(path: str, weight: Tensor) -> str:
    return f"{path}.weight {list(weight.shape)}"
