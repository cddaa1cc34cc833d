"""What quantization cost and what it reached, as data."""

from dataclasses import dataclass, field

from embedl_deploy.quantization.costs import Prediction

_FLOATS = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LayerQuality:
    """One layer: its precision, its size, and what rounding did to it."""

    node: str
    module: str
    """Path of the user's module."""

    source: str | None
    precision: str
    """Of its operands: ``"int8"``, ``"int8 weights"``, ``"float32"``, …"""

    macs: int
    """Multiply-accumulates of one call at the traced shapes."""

    weight_bytes: int
    """Of the weight as it is stored, scales included."""

    snr_db: float | None
    """Signal-to-noise of its output against the float model, everything before it rounded too.

    In decibels, 10 log10(Σ y² / Σ (y' - y)²); None where the layer is in float and exact."""

    own_snr_db: float | None
    """The same where this layer alone is rounded; None for a layer in float."""

    output_share: float
    """Its share in the error of the model's output, to first order, 0 to 1."""

    reason: str | None = None
    """Why it stayed in float, None for a quantized layer."""

    prediction: Prediction | None = None
    """What it costs in int8 and in bfloat16 by the table of the backend; None without a table.

    Made before anything is built, and for a layer left in float too."""

    @property
    def is_float(self) -> bool:
        """Whether both of its operands are in float."""
        return self.precision in _FLOATS


@dataclass(frozen=True)
class QuantizationReport:
    """What quantization did to a model, on some data."""

    layers: tuple[LayerQuality, ...]
    """Everything that multiplies and accumulates, in graph order."""

    output_snr_db: float
    """Signal-to-noise of the model's floating-point outputs."""

    macs: dict[str, int]
    """Multiply-accumulates by precision."""

    bytes: dict[str, int]
    """Bytes of parameters as they are stored, by precision."""

    batches: int
    """How many batches the figures come from."""

    nodes: dict[str, str] = field(default_factory=dict[str, str])
    """The precision of every node that yields a tensor, by its name, in graph order."""

    def share_of_macs(self, precision: str) -> float:
        """Returns the share of the multiply-accumulates that run in a precision, 0 to 1."""
        total = sum(self.macs.values())
        return self.macs.get(precision, 0) / total if total else 0.0

    def share_of_bytes(self, precision: str) -> float:
        """Returns the share of the stored parameters that are in a precision, 0 to 1."""
        total = sum(self.bytes.values())
        return self.bytes.get(precision, 0) / total if total else 0.0

    def in_float(self) -> tuple[LayerQuality, ...]:
        """Returns the layers that stayed in float, largest first, each with its reason."""
        layers = [layer for layer in self.layers if layer.is_float]
        return tuple(sorted(layers, key=lambda layer: -layer.macs))

    def predicted_slower(self) -> tuple[LayerQuality, ...]:
        """Returns the int8 layers that bfloat16 is expected to run faster, largest loss first."""
        slower = [
            (layer.prediction.bf16_ms - layer.prediction.int8_ms, layer)
            for layer in self.layers
            if layer.precision == "int8" and layer.prediction and layer.prediction.is_slower
        ]
        return tuple(layer for _, layer in sorted(slower, key=lambda item: item[0]))

    def worst(self, count: int = 10) -> tuple[LayerQuality, ...]:
        """Returns the layers with the largest share in the output's error, largest first."""
        ranked = sorted(self.layers, key=lambda layer: -layer.output_share)
        return tuple(layer for layer in ranked if layer.output_share > 0)[:count]
