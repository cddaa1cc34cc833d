"""The engine of rewriting: trees, patterns, matches, and the loop that applies them."""

from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.by_example import example_tree
from embedl_deploy.rewriting.compose import Chain, Maybe, OneOf, Wildcard
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.passes import Pass, run_passes
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.phase import Phase
from embedl_deploy.rewriting.plan import TransformationPlan, apply_plan, make_plan
from embedl_deploy.rewriting.records import PassRecord, SiteRecord, TransformationReport
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Previous, Tree

__all__ = [
    "Chain",
    "Exactly",
    "Fork",
    "Input",
    "Literal",
    "Maybe",
    "Named",
    "OneOf",
    "Op",
    "Pass",
    "PassRecord",
    "Pattern",
    "PatternMatch",
    "Phase",
    "Previous",
    "Refusal",
    "SiteRecord",
    "TransformationPlan",
    "TransformationReport",
    "Tree",
    "Wildcard",
    "apply_patterns",
    "apply_plan",
    "example_tree",
    "make_plan",
    "run_passes",
]
