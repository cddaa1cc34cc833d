"""Every built-in pattern is right on graphs made from its own tree and on near misses."""

import pytest

from embedl_deploy.backends.registry import discover_backends
from embedl_deploy.rewriting import Pattern
from embedl_deploy.testing import check_pattern
from tests.pattern_checks.builtin import EXAMPLES, all_patterns


@pytest.mark.parametrize("pattern", all_patterns(), ids=lambda pattern: pattern.name)
def test_is_right_wherever_it_applies(pattern: type[Pattern]) -> None:
    backend = discover_backends()["tensorrt"]
    others = (*backend.conversion_patterns, *backend.fusion_patterns)
    example = EXAMPLES.get(pattern.name)

    result = check_pattern(
        pattern, others=others, examples=(example,) if example else (), max_examples=4
    )

    assert result.positives > 0


@pytest.mark.slow
def test_explanations_name_what_was_changed() -> None:
    explained = [
        item
        for pattern in all_patterns()
        for item in check_pattern(
            pattern,
            examples=(EXAMPLES[pattern.name],) if pattern.name in EXAMPLES else (),
            max_examples=10,
        ).explanations
    ]

    missed = [str(item) for item in explained if not item.is_explained]
    assert len(explained) > 500
    assert len(missed) <= 0.05 * len(explained), "\n".join(missed)
