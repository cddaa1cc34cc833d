"""What the check of a quantized graph finds, as data."""

from dataclasses import dataclass

CODES = {
    "QDQ001": "a layer has one operand in low precision and the other in float",
    "QDQ002": "a tensor has two quantizers",
    "QDQ003": "tensors that must share a scale have two",
    "QDQ004": "codes are not of the kind that the target takes",
    "QDQ005": "the scales of a weight do not go with its output channels",
    "QDQ006": "a quantizer stands inside what the target fuses",
    "QDQ007": "a layer runs in float between layers in low precision, for no recorded reason",
    "QDQ008": "a quantizer has no usable scale",
    "QDQ009": "a quantizer is read by nothing that runs in low precision",
    "QDQ010": "a quantize and a dequantize do not go together",
}
"""What each code stands for."""


@dataclass(frozen=True)
class QdqFinding:
    """One place where the quantizers of a graph are not as the target needs them."""

    code: str
    """One of ``CODES``."""

    node: str
    """Name of the node."""

    message: str
    """What is there, with values, and what has to be."""

    source: str | None = None
    """``file:line`` of the user's code, None if tracing did not record it."""

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        return f"{self.code} at %{self.node}: {self.message}{where}"
