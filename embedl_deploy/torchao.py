"""The patterns that ``transform`` applies for the torchao backend."""

from embedl_deploy.backends.torchao import TORCHAO

TORCHAO_PATTERNS = (*TORCHAO.conversion_patterns, *TORCHAO.fusion_patterns)

__all__ = ["TORCHAO_PATTERNS"]
