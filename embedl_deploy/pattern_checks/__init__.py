"""Generated graphs for the tests of patterns; the public door is ``embedl_deploy.testing``."""

from embedl_deploy.pattern_checks.check import check_pattern
from embedl_deploy.pattern_checks.result import PatternCheck

__all__ = ["PatternCheck", "check_pattern"]
