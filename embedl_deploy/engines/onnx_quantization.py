"""How quantize and dequantize operations are spelled in ONNX, in the types of opset 21."""

import functools
from collections.abc import Callable
from typing import Protocol, cast

import torch

from embedl_deploy.quantization.quantize_dequantize import decomposed

OPSET = 21
"""The first with int4 and int16 codes, and with scales in the type of what they scale."""

Translation = Callable[..., object]


def quantization_table(*, short_codes: bool) -> dict[Callable[..., object], Translation]:
    """Returns a translation for each quantize and dequantize operation of a converted graph.

    torch's own write opset 18: codes lose limits narrower than their storage, and a scale is in
    float32 whatever it scales.

    Args:
        short_codes: Whether int4 values, which are stored as int8, become int4: half the bytes,
            where int8 is what runtimes have integer kernels for.
    """
    ops = _overloads(decomposed())
    made = _Translations(short_codes)
    return {
        ops["quantize_per_tensor"]: _function(made.quantize_per_tensor),
        ops["dequantize_per_tensor"]: _function(made.dequantize_per_tensor),
        ops["dequantize_per_channel"]: _function(made.dequantize_per_channel),
        ops["dequantize_per_channel_group"]: _function(made.dequantize_per_channel_group),
        decomposed().quantize_per_tensor.tensor: _function(made.quantize_at_run_time),
        decomposed().dequantize_per_tensor.tensor: _function(made.dequantize_at_run_time),
        ops["quantize_per_token"]: _function(made.quantize_per_token),
        ops["dequantize_per_token"]: _function(made.dequantize_per_token),
    }


def _function(method: Translation) -> Translation:
    """Returns a function of its own: the exporter notes a signature on it, which methods refuse."""

    @functools.wraps(method)
    def call(*args: object, **kwargs: object) -> object:
        return method(*args, **kwargs)

    return call


def _overloads(ops: object) -> dict[str, Callable[..., object]]:
    names = (
        "quantize_per_tensor",
        "dequantize_per_tensor",
        "dequantize_per_channel",
        "dequantize_per_channel_group",
        "quantize_per_token",
        "dequantize_per_token",
    )
    return {name: getattr(ops, name).default for name in names}


def store_short_codes(model: object) -> None:
    """Stores int4 codes as int4 in a model of onnx_ir, in place of int8 and a cast.

    The exporter's own folding stops at tensors of a few thousand values.
    """
    import onnx_ir

    assert isinstance(model, onnx_ir.Model), "the exporter makes models of onnx_ir"
    graph = model.graph
    for node in tuple(graph):
        if node.op_type != "Cast" or node.attributes["to"].as_int() not in (_UINT4, _INT4):
            continue
        given, made = node.inputs[0], node.outputs[0]
        if given is None or given.const_value is None:
            continue
        kind = onnx_ir.DataType(node.attributes["to"].as_int())
        codes = given.const_value.numpy().astype(kind.numpy())
        stored = onnx_ir.Value(
            name=f"{made.name}_short",
            shape=made.shape,
            type=onnx_ir.TensorType(kind),
            const_value=onnx_ir.Tensor(codes, dtype=kind, name=f"{made.name}_short"),
        )
        graph.register_initializer(stored)
        onnx_ir.convenience.replace_all_uses_with(made, stored)
        graph.remove(node, safe=True)
        if not given.uses():
            graph.initializers.pop(str(given.name), None)


class _Translations:
    """What the exporter calls; of their annotations it reads int and float as literals."""

    def __init__(self, short_codes: bool) -> None:
        self.short_codes = short_codes

    def quantize_per_tensor(
        self,
        x: object,
        scale: float,
        zero_point: int,
        quant_min: int,
        quant_max: int,
        dtype: int,
    ) -> object:
        ops, codes = _operators(), self.code_type(dtype, quant_min, quant_max)
        given = _type_of(x)
        kind = _scale_type(given, scale)
        if kind != given:
            x = ops.Cast(x, to=kind)
        if _LIMITS.get(codes, (quant_min, quant_max)) != (quant_min, quant_max):
            # QuantizeLinear knows no other limits than those of its type.
            ends = ((end - zero_point) * scale for end in (quant_min, quant_max))
            x = ops.Clip(x, *(_constant(end, kind) for end in ends))
        return ops.QuantizeLinear(x, _constant(scale, kind), _constant(zero_point, codes))

    def dequantize_per_tensor(
        self,
        codes: object,
        scale: float,
        zero_point: int,
        quant_min: int,
        quant_max: int,
        dtype: int,
        out_dtype: int = -1,
    ) -> object:
        ops, wanted = _operators(), _float_type(out_dtype)
        kind = _scale_type(wanted, scale)
        point = _constant(zero_point, self.code_type(dtype, quant_min, quant_max))
        found = ops.DequantizeLinear(codes, _constant(scale, kind), point)
        return found if kind == wanted else ops.Cast(found, to=wanted)

    def dequantize_per_channel(
        self,
        codes: object,
        scales: object,
        zero_points: object | None,
        axis: int,
        quant_min: int,
        quant_max: int,
        dtype: int,
        out_dtype: int = -1,
    ) -> object:
        ops, kind, wanted = (
            _operators(),
            self.code_type(dtype, quant_min, quant_max),
            _float_type(out_dtype),
        )
        if kind != dtype:
            codes = ops.Cast(codes, to=kind)
        scales = ops.Cast(scales, to=wanted)
        if zero_points is None:
            return ops.DequantizeLinear(codes, scales, axis=axis)
        return ops.DequantizeLinear(codes, scales, ops.Cast(zero_points, to=kind), axis=axis)

    def dequantize_per_channel_group(
        self,
        codes: object,
        scales: object,
        zero_points: object | None,
        quant_min: int,
        quant_max: int,
        dtype: int,
        group_size: int,
        output_dtype: int,
    ) -> object:
        assert zero_points is None, "groups are written without zero points"
        ops, kind = _operators(), self.code_type(dtype, quant_min, quant_max)
        if kind != dtype:
            codes = ops.Cast(codes, to=kind)
        scales = ops.Cast(scales, to=output_dtype)
        return ops.DequantizeLinear(codes, scales, axis=1, block_size=group_size)

    def quantize_at_run_time(
        self,
        x: object,
        scale: object,
        zero_point: object,
        quant_min: int,
        quant_max: int,
        dtype: int,
    ) -> object:
        del quant_min, quant_max  # those of the type: the codes have eight bits
        ops = _operators()
        return ops.QuantizeLinear(ops.Cast(x, to=_FLOAT), scale, ops.Cast(zero_point, to=dtype))

    def dequantize_at_run_time(
        self,
        codes: object,
        scale: object,
        zero_point: object,
        quant_min: int,
        quant_max: int,
        dtype: int,
        out_dtype: int = -1,
    ) -> object:
        del quant_min, quant_max
        ops = _operators()
        found = ops.DequantizeLinear(codes, scale, ops.Cast(zero_point, to=dtype))
        return ops.Cast(found, to=_float_type(out_dtype))

    def quantize_per_token(
        self,
        x: object,
        scales: object,
        zero_points: object,
        quant_min: int,
        quant_max: int,
        dtype: int,
    ) -> object:
        # ONNX has no axis for it: DynamicQuantizeLinear takes one scale for the tensor.
        ops = _operators()
        scaled = ops.Mul(ops.Cast(x, to=_FLOAT), ops.Reciprocal(scales))
        codes = ops.Round(ops.Add(scaled, ops.Cast(zero_points, to=_FLOAT)))
        ends = (_constant(end, _FLOAT) for end in (quant_min, quant_max))
        return ops.Cast(ops.Clip(codes, *ends), to=dtype)

    def dequantize_per_token(
        self,
        codes: object,
        scales: object,
        zero_points: object,
        quant_min: int,
        quant_max: int,
        dtype: int,
        output_dtype: int,
    ) -> object:
        del quant_min, quant_max, dtype
        ops = _operators()
        moved = ops.Sub(ops.Cast(codes, to=_FLOAT), ops.Cast(zero_points, to=_FLOAT))
        return ops.Cast(ops.Mul(moved, scales), to=output_dtype)

    def code_type(self, stored: int, quant_min: int, quant_max: int) -> int:
        """Returns the ONNX type of codes: int4 where their limits are those of int4."""
        short = _SHORT.get((stored, quant_min, quant_max), stored)
        return short if self.short_codes else stored


def _scale_type(wanted: int, scale: float) -> int:
    """Returns float32 for a scale that the wanted type would round to a few bits or to zero."""
    return _FLOAT if wanted == _FLOAT16 and scale < torch.finfo(torch.float16).tiny else wanted


def _type_of(value: object) -> int:
    dtype = getattr(value, "dtype", None)
    return _FLOAT if dtype is None else int(dtype)


def _float_type(out_dtype: int | None) -> int:
    return _FLOAT if out_dtype is None or out_dtype < 0 else out_dtype


_FLOAT, _UINT8, _INT8, _UINT16, _INT16, _FLOAT16, _UINT4, _INT4 = 1, 2, 3, 4, 5, 10, 21, 22
"""Members of ``onnx.TensorProto.DataType``, which is there only with the extra."""

_SHORT = {(_INT8, -8, 7): _INT4, (_UINT8, 0, 15): _UINT4}
_LIMITS = {
    _INT8: (-128, 127),
    _UINT8: (0, 255),
    _INT16: (-(2**15), 2**15 - 1),
    _UINT16: (0, 2**16 - 1),
}
"""What QuantizeLinear clamps to."""


class _Operators(Protocol):
    """The operators of ONNX that are written here, under their own names."""

    def Cast(self, x: object, *, to: int) -> object: ...  # noqa: N802
    def Clip(self, x: object, low: object, high: object) -> object: ...  # noqa: N802
    def Mul(self, x: object, y: object) -> object: ...  # noqa: N802
    def Add(self, x: object, y: object) -> object: ...  # noqa: N802
    def Sub(self, x: object, y: object) -> object: ...  # noqa: N802
    def Round(self, x: object) -> object: ...  # noqa: N802
    def Reciprocal(self, x: object) -> object: ...  # noqa: N802
    def QuantizeLinear(self, x: object, scale: object, zero: object) -> object: ...  # noqa: N802
    def DequantizeLinear(  # noqa: N802
        self,
        x: object,
        scale: object,
        zero: object = None,
        *,
        axis: int = 1,
        block_size: int = 0,
    ) -> object: ...
    def Constant(self, *, value: object) -> object: ...  # noqa: N802


def _operators() -> _Operators:
    from onnxscript import opset21

    return cast("_Operators", opset21)


def _constant(value: float, kind: int) -> object:
    from onnx.helper import make_tensor

    return _operators().Constant(value=make_tensor("", kind, (), [value]))
