"""How often ``explain`` names what keeps a pattern from firing.

Run ``python -m benchmarks.explain_share``. Every built-in pattern, every near miss that
``check_pattern`` makes of graphs in which it fits: does the first near miss name the changed node,
and the property of it that was changed?
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch

from embedl_deploy.pattern_checks.explained import ExplainedMutation
from embedl_deploy.rewriting import Pattern
from embedl_deploy.testing import check_pattern
from tests.pattern_checks.builtin import EXAMPLES, all_patterns

_RESULTS = Path(__file__).parent / "results" / "explain_share.json"


def main() -> None:
    """Measures, prints a table, writes ``results/explain_share.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20, help="graphs per pattern")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[ExplainedMutation]] = {}
    for pattern in all_patterns():
        found[pattern.name] = _explanations(pattern, options.examples)
        sys.stdout.write(_line(pattern.name, found[pattern.name]) + "\n")
        sys.stdout.flush()
    everything = [item for items in found.values() for item in items]
    by_mutation = {
        name: [item for item in everything if item.mutation == name]
        for name in dict.fromkeys(item.mutation for item in everything)
    }
    sys.stdout.write("\n")
    for name, items in by_mutation.items():
        sys.stdout.write(_line(name, items) + "\n")
    sys.stdout.write("\n" + _line("all", everything) + "\n")
    document = {
        "all": _counts(everything),
        "by_mutation": {name: _counts(items) for name, items in by_mutation.items()},
        "by_pattern": {name: _counts(items) for name, items in found.items()},
        "not_explained": dict(
            Counter(
                f"{item.mutation}: {item.said.splitlines()[0]}"
                for item in everything
                if not item.is_explained
            )
        ),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n")


def _explanations(pattern: type[Pattern], count: int) -> list[ExplainedMutation]:
    example = EXAMPLES.get(pattern.name)
    examples = () if example is None else (example,)
    return check_pattern(pattern, examples=examples, max_examples=count).explanations


def _counts(items: list[ExplainedMutation]) -> dict[str, int]:
    return {
        "declined": len(items),
        "explained": sum(item.is_explained for item in items),
        "without_naming_a_node": sum(item.is_explained and item.unprompted for item in items),
    }


def _line(name: str, items: list[ExplainedMutation]) -> str:
    counts = _counts(items)
    share = f"{counts['explained'] / len(items):7.1%}" if items else "      -"
    unprompted = f"{counts['without_naming_a_node']} without naming a node"
    return f"{name:40} {counts['explained']:4} of {len(items):4} {share}  ({unprompted})"


if __name__ == "__main__":
    main()
