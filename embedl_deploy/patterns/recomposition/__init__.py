"""Rules that find one operation behind several that a model spells it with."""

from embedl_deploy.patterns.recomposition.recompose_attention import RecomposeAttention

__all__ = ["RecomposeAttention"]
