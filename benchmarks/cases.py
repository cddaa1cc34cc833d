"""What the latency benchmark measures, as data."""

from dataclasses import dataclass

from embedl_deploy.quantize import CalibrationMethod


@dataclass(frozen=True)
class Case:
    """One model, named as on the command line."""

    name: str
    source: str
    calibration_inputs: int = 32
    test_inputs: int = 8
    ranges: CalibrationMethod = CalibrationMethod.MINMAX
    """How ranges of activations are found."""

    expected_kernels: dict[str, int] | None = None
    """Kernels per call that int8 must run, as the profiler counts them."""

    compare_nncf: bool = False
    """Whether to quantize with nncf too, on the same weights, calibration and test inputs."""


CASES = (
    Case(
        "ResNet-50, batch 1, 224×224",
        "torchvision:resnet50",
        expected_kernels={"qconv": 53, "qlinear": 1},
        ranges=CalibrationMethod.HISTOGRAM,
        compare_nncf=True,
    ),
    Case("ViT-B/16, batch 1, 224×224", "torchvision:vit_b_16", calibration_inputs=16),
    Case("BERT-base, batch 1, 128 tokens", "transformers:bert-base", calibration_inputs=16),
)
