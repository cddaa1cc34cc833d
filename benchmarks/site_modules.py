"""One site as two small modules: in int8 and in bfloat16, spelled as Inductor takes them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantization.site import Site

SCALE, ZERO_POINT = 0.02, 128
_CODES = (SCALE, ZERO_POINT, 0, 255, torch.uint8)


def inputs_of(site: Site, *, integer: bool) -> list[Tensor]:
    """Returns what a site reads: its input, then the addend or second operand if it has one.

    Images are channels-last, as Inductor keeps them, but for the model's own input of up to four
    channels.
    """
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(site.input_shape, generator=generator)]
    kinds = [site.reads]
    if site.kind == "matmul":
        values.append(torch.randn(site.weight_shape, generator=generator))
        kinds.append("bfloat16")
    if site.residual:
        values.append(torch.randn(site.output_shape, generator=generator))
        kinds.append("codes" if site.residual == "codes" else "bfloat16")
    is_image = site.kind == "conv" and site.input_shape[1] > 4 and len(site.input_shape) == 4
    layout = torch.channels_last if is_image else torch.contiguous_format
    return [
        _as_it_arrives(value, kind, integer).contiguous(memory_format=layout)
        for value, kind in zip(values, kinds, strict=True)
    ]


def _as_it_arrives(value: Tensor, kind: str, integer: bool) -> Tensor:
    if kind == "float32":
        return value
    if kind == "bfloat16" or not integer:
        return value.bfloat16()
    return (value / SCALE + ZERO_POINT).round().clamp(0, 255).to(torch.uint8)


class IntegerSite(nn.Module):
    """A site with int8 operands, what is not int8 in bfloat16."""

    codes: Tensor
    scales: Tensor
    zero_points: Tensor
    bias: Tensor | None

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.activation = _activation(site)
        self.ops = decomposed()
        generator = torch.Generator().manual_seed(0)
        channels = site.weight_shape[0]
        weight = torch.randint(-127, 128, site.weight_shape, generator=generator)
        self.register_buffer("codes", weight.to(torch.int8))
        self.register_buffer("scales", torch.rand(channels, generator=generator) * 0.01 + 1e-3)
        self.register_buffer("zero_points", torch.zeros(channels, dtype=torch.int32))
        bias = torch.randn(channels, generator=generator).bfloat16()
        self.register_buffer("bias", bias if site.has_bias else None)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self._dequantized(x, self.site.reads)
        if self.site.kind == "matmul":
            assert other is not None
            return _short(x) @ _short(self._dequantized(other, "bfloat16"))
        weight = self.ops.dequantize_per_channel.default(
            self.codes, self.scales, self.zero_points, 0, -128, 127, torch.int8
        )
        y = _product(self.site, _short(x), _short(weight), self.bias)
        if other is not None:
            codes = self.site.residual == "codes"
            y = y + (self._dequantized(other, "codes") if codes else other)
        y = y if self.activation is None else self.activation(y)
        return self.ops.quantize_per_tensor.default(y, *_CODES) if self.site.writes_codes else y

    def _dequantized(self, x: Tensor, kind: str) -> Tensor:
        if kind != "codes":
            x = self.ops.quantize_per_tensor.default(x, *_CODES)
        return self.ops.dequantize_per_tensor.default(x, *_CODES)


class FloatSite(nn.Module):
    """The same site in bfloat16."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.activation = _activation(site)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(site.weight_shape, generator=generator).bfloat16()
        self.register_buffer("weight", weight)
        bias = torch.randn(site.weight_shape[0], generator=generator).bfloat16()
        self.register_buffer("bias", bias if site.has_bias else None)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = _short(x) if self.site.reads == "float32" else x
        if self.site.kind == "matmul":
            assert other is not None
            return x @ other
        y = _product(self.site, x, self.weight, self.bias)
        y = y if other is None else y + other
        return y if self.activation is None else self.activation(y)


def _product(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if site.kind == "linear":
        return functional.linear(x, weight, bias)
    convolve = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[len(site.input_shape)]
    return convolve(x, weight, bias, site.stride, site.padding, site.dilation, site.groups)


def _short(x: Tensor) -> Tensor:
    # As the engine spells it: a cast that is no ``aten.to`` is found in front of int8 kernels.
    return torch.ops.prims.convert_element_type.default(x, torch.bfloat16)


def _activation(site: Site) -> nn.Module | None:
    return getattr(nn, site.activation)() if site.activation else None
