"""Which rewrites are wanted: by pattern, by stage, by module of the user's model."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import GraphModule

from embedl_deploy.graph.nodes import module_path
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.phase import Phase
from embedl_deploy.rewriting.refusal import Refusal


@dataclass(frozen=True)
class Selection:
    """Words that select rewrites; each is the name of a stage, or a glob like ``fuse-*``.

    A glob stands for the patterns of that name and for the modules of the user's model at that
    path and below it (``encoder.layer.*``). Where there are words in ``only``, what none of them
    means is left alone; so is what a word of ``skip`` means.
    """

    only: tuple[str, ...] = ()
    """What to rewrite; everything if empty."""

    skip: tuple[str, ...] = ()
    """What to leave alone."""

    def __call__(self, match: PatternMatch) -> Refusal | None:
        """Returns why a match is left alone, None if it is wanted."""
        skipped = next((word for word in self.skip if _means(word, match)), None)
        if skipped is not None:
            return Refusal(f"left out by skip={skipped!r}", match.root)
        if self.only and not any(_means(word, match) for word in self.only):
            return Refusal(f"no word of only={list(self.only)} means it", match.root)
        return None

    def require_known(self, graph_module: GraphModule, patterns: Iterable[Pattern]) -> None:
        """Asserts that each word means something.

        Raises:
            ValueError: One means no pattern, no stage and no module.
        """
        rules = {rule.name: None for rule in patterns}
        paths = {module_path(node): None for node in graph_module.graph.nodes}
        stages = [phase.value for phase in Phase]
        for word in (*self.only, *self.skip):
            known = any(fnmatchcase(name, word) for name in (*rules, *stages))
            if not known and not any(_is_at(path, word) for path in paths):
                raise ValueError(
                    f"{word!r} means no pattern, stage or module here: patterns are "
                    f"{', '.join(rules) or 'none'}; stages are {', '.join(stages)}; modules are "
                    f"{', '.join([path for path in paths if path][:12])}, …"
                )


def _means(word: str, match: PatternMatch) -> bool:
    if word in (match.pattern.name, match.stage) or fnmatchcase(match.pattern.name, word):
        return True
    return any(_is_at(module_path(node), word) for node in match.nodes)


def _is_at(path: str, word: str) -> bool:
    return fnmatchcase(path, word) or fnmatchcase(path, f"{word}.*")
