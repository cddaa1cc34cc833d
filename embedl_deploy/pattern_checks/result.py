"""What ``check_pattern`` tried, and with what outcome."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedl_deploy.pattern_checks.explained import ExplainedMutation


@dataclass
class PatternCheck:
    """What ``check_pattern`` tried."""

    pattern: str
    """Kebab-case name of the pattern."""

    positives: int = 0
    """Graphs in which the pattern was applied, and stayed right."""

    refused: Counter[str] = field(default_factory=Counter[str])
    """Generated graphs that the pattern declined, by reason."""

    mutations: Counter[str] = field(default_factory=Counter[str])
    """Near misses by kind."""

    applied: Counter[str] = field(default_factory=Counter[str])
    """Near misses, by kind, to which the pattern was rightly applied all the same."""

    explanations: list[ExplainedMutation] = field(default_factory=list[ExplainedMutation])
    """What ``explain`` says first about each declined near miss."""

    literals: dict[str, list[object]] = field(default_factory=dict[str, list[object]])
    """The values that each captured literal had, in the graphs and in the near misses."""

    @property
    def unchanged_literals(self) -> list[str]:
        """The captured literals of which only one value was tried: what others do is unchecked."""
        return sorted(name for name, values in self.literals.items() if len(values) < 2)

    @property
    def unexplained(self) -> list[str]:
        """The declined near misses whose explanation does not name the node and the property."""
        return [str(item) for item in self.explanations if not item.is_explained]

    @property
    def explained_share(self) -> float:
        """Share of the declined near misses whose explanation names what was changed."""
        declined = len(self.explanations)
        return 1.0 if declined == 0 else 1.0 - len(self.unexplained) / declined

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.mutations.items()))
        return (
            f"{self.pattern}: right in {self.positives} graphs, declined "
            f"{self.refused.total()}; near misses: {kinds or 'none'}; "
            f"{self.explained_share:.0%} of those declined are explained{self._unchanged()}"
        )

    def _unchanged(self) -> str:
        names = ", ".join(map(repr, self.unchanged_literals))
        cure = "whether another value is declined was not checked: give an example that runs with"
        return f"; never changed: literal {names} ({cure} one)" if names else ""

    def saw(self, literals: Mapping[str, object]) -> None:
        """Notes the values of captured literals."""
        for name, value in literals.items():
            known = self.literals.setdefault(name, [])
            if not any(value == other for other in known):
                known.append(value)
