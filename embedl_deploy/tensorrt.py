"""The patterns that ``transform`` applies for the tensorrt backend."""

from embedl_deploy.backends.tensorrt import TENSORRT

TENSORRT_PATTERNS = (*TENSORRT.conversion_patterns, *TENSORRT.fusion_patterns)

__all__ = ["TENSORRT_PATTERNS"]
