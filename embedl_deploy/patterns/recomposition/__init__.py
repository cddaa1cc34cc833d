"""Rules that find one operation behind several that a model spells it with."""

from embedl_deploy.patterns.recomposition.recompose_attention import RecomposeAttention
from embedl_deploy.patterns.recomposition.recompose_gelu import RecomposeGelu
from embedl_deploy.patterns.recomposition.recompose_quick_gelu import RecomposeQuickGelu
from embedl_deploy.patterns.recomposition.recompose_silu import RecomposeSilu

__all__ = ["RecomposeAttention", "RecomposeGelu", "RecomposeQuickGelu", "RecomposeSilu"]
