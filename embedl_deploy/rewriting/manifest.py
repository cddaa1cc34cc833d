"""What patterns are expected to find in which models: the alarm for a version bump."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

from torch.fx import GraphModule

from embedl_deploy.errors import OutputPathError, PlanError
from embedl_deploy.files import write_aside
from embedl_deploy.rewriting.explain import Explanation, explain_graph
from embedl_deploy.rewriting.pattern import Pattern, instances
from embedl_deploy.rewriting.plan import make_plan
from embedl_deploy.rewriting.records import TransformationReport

FORMAT = 1
"""Version of the file format."""


@dataclass(frozen=True)
class Deviation:
    """A pattern that is applied another number of times than expected."""

    model: str
    """Name of the model."""

    pattern: str
    """Kebab-case name of the pattern."""

    expected: int
    """How often the manifest says it is applied."""

    found: int
    """How often it is."""

    explanation: Explanation | None = None
    """For a pattern that is applied less often: why."""

    @property
    def is_loss(self) -> bool:
        """Whether it is applied less often than expected."""
        return self.found < self.expected

    def __str__(self) -> str:
        verb = "lost" if self.is_loss else "gained"
        line = f"{self.model}: {self.pattern} {verb}, expected {self.expected}, got {self.found}"
        return line if self.explanation is None else f"{line}\n{self.explanation}"


@dataclass
class Manifest:
    """How often each pattern is applied, by model."""

    backend: str | None = None
    """Name of the backend whose patterns these are."""

    models: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Model → pattern → count."""

    def record(self, model: str, report: TransformationReport) -> None:
        """Takes what ``report`` says as what to expect of ``model``."""
        self.models[model] = dict(sorted(report.counts().items()))

    def check(
        self,
        model: str,
        graph_module: GraphModule,
        patterns: Sequence[type[Pattern] | Pattern],
    ) -> tuple[Deviation, ...]:
        """Returns how a model deviates from what is expected, with an explanation of each loss.

        Args:
            model: Its name in the manifest.
            graph_module: The traced model; it is not changed.
            patterns: The patterns of the backend.

        Raises:
            KeyError: The manifest does not know the model.
        """
        expected = self.models[model]
        rules = {rule.name: rule for rule in instances(patterns)}
        plan = make_plan(graph_module, tuple(rules.values()), self.backend)
        report = TransformationReport(passes=plan.records)
        found = report.counts()
        names = sorted({*expected, *found})
        changed = [name for name in names if expected.get(name, 0) != found.get(name, 0)]
        return tuple(
            self._deviation(model, name, found.get(name, 0), graph_module, rules)
            for name in changed
        )

    def save(self, path: str | Path) -> None:
        """Writes the manifest as JSON, sorted, one count per line.

        Raises:
            OutputPathError: ``path`` cannot be written.
        """
        content = {"format": FORMAT, "backend": self.backend, "models": self.models}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        try:
            write_aside(Path(path), text.encode())
        except OSError as error:
            raise OutputPathError(f"the manifest cannot be written to {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Returns the manifest that ``save`` wrote.

        Raises:
            PlanError: The file cannot be read or is no manifest.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise PlanError(f"the manifest {path} cannot be read: {error}") from error
        if not isinstance(content, dict) or not _is_manifest(cast("dict[str, object]", content)):
            raise PlanError(f"{path} is no manifest of format {FORMAT}, which this version reads")
        entries = cast("dict[str, object]", content)
        models = cast("dict[str, dict[str, int]]", entries["models"])
        return cls(cast("str | None", entries.get("backend")), models)

    def _deviation(
        self,
        model: str,
        pattern: str,
        found: int,
        graph_module: GraphModule,
        rules: dict[str, Pattern],
    ) -> Deviation:
        expected = self.models[model].get(pattern, 0)
        rule = rules.get(pattern)
        explanation = None
        if found < expected and rule is not None:
            explanation = explain_graph(graph_module, rule, others=tuple(rules.values()))
        return Deviation(model, pattern, expected, found, explanation)


def _is_manifest(content: dict[str, object]) -> bool:
    models = content.get("models")
    if content.get("format") != FORMAT or not isinstance(models, dict):
        return False
    counts = cast("dict[str, object]", models).values()
    return all(
        isinstance(by_pattern, dict)
        and all(isinstance(count, int) for count in cast("dict[str, object]", by_pattern).values())
        for by_pattern in counts
    )
