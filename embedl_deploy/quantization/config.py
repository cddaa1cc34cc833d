"""What a user asks of quantization, as frozen data."""

from dataclasses import dataclass, field

from embedl_deploy.quantization.precision import (
    CalibrationMethod,
    Dynamic,
    Precision,
    WeightRounding,
)
from embedl_deploy.quantization.skipping import ModulesToSkip

_HISTOGRAM_METHODS = (
    CalibrationMethod.HISTOGRAM,
    CalibrationMethod.PERCENTILE,
    CalibrationMethod.ENTROPY,
)

_FOR_ACTIVATIONS = (CalibrationMethod.PERCENTILE, CalibrationMethod.ENTROPY)


@dataclass(frozen=True)
class TensorQuantConfig:
    """How one kind of tensor is rounded."""

    precision: Precision = Precision.INT8
    symmetric: bool = True
    """Zero point in the middle of the range, so that zero costs nothing in the kernel."""

    per_channel: bool = False
    """One scale per output channel (weights) instead of one for the tensor."""

    calibration_method: CalibrationMethod = CalibrationMethod.MINMAX

    percentile: float = 99.99
    """Share of the values inside the range, in percent. Read by PERCENTILE only."""

    group_size: int | None = None
    """One scale for so many neighbouring weights of an output, along its input features: 32, 64 or
    128 are usual. Implies ``per_channel``. Weights only; a layer it does not divide stays in float,
    as in torchao, and the report names it."""

    dynamic: Dynamic | None = None
    """Takes the scale from the values themselves at each call, which needs no data: int8
    activations of linear layers, by their smallest and largest value."""

    def __post_init__(self) -> None:
        if self.dynamic is not None:
            self._require_dynamic()
        if self.group_size is not None:
            self._require_groups(self.group_size)
            object.__setattr__(self, "per_channel", True)
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(
                f"percentile must lie in (50, 100], got {self.percentile}: it is the share "
                "of the values that the range keeps"
            )
        if self.precision.is_float and not self.symmetric:
            raise ValueError(
                f"{self.precision.name} has no zero point, got symmetric=False: pass symmetric=True"
            )
        if self.per_channel and self.calibration_method in _HISTOGRAM_METHODS:
            raise ValueError(
                f"{self.calibration_method.name} keeps one histogram per tensor, got "
                "per_channel=True: use MINMAX, MOVING_AVERAGE_MINMAX or MSE"
            )

    def _require_groups(self, size: object) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise ValueError(
                f"group_size must be a whole number of at least 2, got {size!r}: it counts the "
                "weights that share a scale; None for one scale per channel or tensor"
            )
        if not self.symmetric or self.precision.is_float:
            raise ValueError(
                f"groups take integer codes without a zero point, got {self.precision.name} with "
                f"symmetric={self.symmetric}: pass INT4, INT8 or INT16 and symmetric=True"
            )

    def _require_dynamic(self) -> None:
        if self.precision is not Precision.INT8:
            raise ValueError(
                f"scales at run time are for INT8, got {self.precision.name}: no kernel takes them "
                "with other codes"
            )
        if self.calibration_method is not CalibrationMethod.MINMAX:
            raise ValueError(
                "scales at run time hold the smallest and the largest value, got "
                f"{self.calibration_method.name}: leave calibration_method at MINMAX"
            )

    @property
    def quant_min(self) -> int | float:
        """Returns the lowest value the precision stores."""
        return self.precision.format.lowest

    @property
    def quant_max(self) -> int | float:
        """Returns the highest value the precision stores."""
        return self.precision.format.highest

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        granularity = "per channel" if self.per_channel else "per tensor"
        if self.group_size is not None:
            granularity = f"in groups of {self.group_size}"
        if self.dynamic is not None:
            return (
                f"{self.precision.value} {kind} {self.dynamic.value.replace('_', ' ')} at run time"
            )
        return f"{self.precision.value} {kind} {granularity} {self.calibration_method.value}"


@dataclass(frozen=True)
class SmoothQuantConfig:
    """How outliers move from activations into weights before quantization."""

    strength: float = 0.5
    """Share of the difficulty to move, from 0 (none) to 1 (all)."""

    search: bool = True
    """Tries strengths per group, keeps the one with the least error, or none where all hurt."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength must lie in [0, 1], got {self.strength}")


@dataclass(frozen=True)
class QuantConfig:
    """Everything ``quantize`` is told about precision."""

    activation: TensorQuantConfig | None = field(
        default_factory=lambda: TensorQuantConfig(symmetric=False)
    )
    """``None`` leaves activations in float (weight-only quantization)."""

    weight: TensorQuantConfig | None = field(
        default_factory=lambda: TensorQuantConfig(per_channel=True)
    )
    """``None`` leaves weights in float."""

    skip: ModulesToSkip = field(default_factory=ModulesToSkip)
    smooth: SmoothQuantConfig | None = field(default_factory=SmoothQuantConfig)
    """``None`` leaves outliers where they are. The default, with min-max ranges, takes the mean
    cosine of all-MiniLM-L6-v2's embeddings from 0.9933 to 0.9982."""

    bias_correction: bool = True
    """Biases make up for what rounding the weights does to the mean output. Costs no pass of its
    own; lowers the squared error of small convolutional nets by a tenth to a third."""

    weight_rounding: WeightRounding = WeightRounding.NEAREST
    """GPTQ and ADAROUND need calibration data, also where activations stay in float."""

    equalise: bool = False
    """Balances the weights of neighbouring layers across relus first, exact in float. Of use where
    weights have one scale per tensor; per channel it gains little."""

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation.group_size is not None:
            raise ValueError(
                f"groups are of weights, got group_size={self.activation.group_size} for "
                "activations: set it in QuantConfig(weight=...)"
            )
        if self.activation is not None and self.activation.per_channel:
            raise ValueError(
                "activations take one scale per tensor, got per_channel=True: no kernel "
                "sums over channels that have different scales"
            )
        if self.weight is not None and self.weight.dynamic is not None:
            raise ValueError(
                f"weights do not change from call to call, got dynamic={self.weight.dynamic.name}: "
                "set it in QuantConfig(activation=...)"
            )
        if self.weight is not None and not self.weight.symmetric:
            raise ValueError(
                "weights must be symmetric, got symmetric=False: kernels take a zero point "
                "on the activation only"
            )
        if self.weight is not None and self.weight.calibration_method in _FOR_ACTIVATIONS:
            raise ValueError(
                "weights are known in full and their ranges searched in them, got "
                f"{self.weight.calibration_method.name}, which is for activations: use MINMAX or "
                "MSE, or HISTOGRAM per tensor, which searches as MSE does"
            )
        if self.activation is None and self.weight is None:
            raise ValueError("nothing to quantize: activation and weight are both None")
