"""The patterns that ``transform`` applies for the inductor backend."""

from embedl_deploy.backends.inductor import INDUCTOR

INDUCTOR_PATTERNS = (*INDUCTOR.conversion_patterns, *INDUCTOR.fusion_patterns)

__all__ = ["INDUCTOR_PATTERNS"]
