"""Plans as JSON files."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

from torch import nn
from torch.fx import GraphModule

from embedl_deploy.errors import OutputPathError, PlanError
from embedl_deploy.files import write_aside
from embedl_deploy.graph.nodes import module_path, source_line
from embedl_deploy.graph.record import has_record
from embedl_deploy.graph.traced_module import structural_copy
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.fingerprint import site_fingerprint
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern, instances
from embedl_deploy.rewriting.plan import SiteKey, TransformationPlan, make_plan, site_key
from embedl_deploy.rewriting.plan_content import FORMAT, Entry, read_plan, require_known_patterns
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.tracing import trace

_WAYS_TO_FIND = 3
"""How many likenesses a site has; all sites are sought by the surest before the next is tried."""

P = TypeVar("P", bound=TransformationPlan)


def save_plan(plan: TransformationPlan, path: Path) -> None:
    """Writes ``plan`` to ``path``; see ``TransformationPlan.save``."""
    details = _site_details(plan)
    content = {
        "format": FORMAT,
        "backend": plan.backend,
        "patterns": [rule.name for stage in plan.stages for rule in stage.patterns],
        "sites": [_entry(match, details) for match in plan.sites()],
    }
    try:
        write_aside(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise OutputPathError(f"the plan cannot be written to {path}: {error}") from error


def load_plan(
    kind: type[P],
    path: Path,
    model: nn.Module,
    args: tuple[object, ...] | None,
    kwargs: Mapping[str, object] | None,
    patterns: Sequence[type[Pattern] | Pattern] | None,
    *,
    strict: bool,
) -> P:
    """Reads a plan and fits it to ``model``; see ``TransformationPlan.load``."""
    content = read_plan(path)
    given = () if patterns is None else instances(patterns)
    require_known_patterns(content, [rule.name for rule in given], path)
    traced = isinstance(model, GraphModule) and has_record(model)
    graph_module = cast("GraphModule", model) if traced else trace(model, args, kwargs)
    rules = given or _patterns_named(content["patterns"], path)
    plan = make_plan(graph_module, rules, content["backend"], kind=kind)
    plan.missing = _transfer(content["sites"], plan)
    if plan.missing and strict:
        raise PlanError(
            f"{path} no longer fits the model at {len(plan.missing)} sites: "
            + "; ".join(plan.missing[:5])
            + ". Plan anew, or load with strict=False (--no-strict on the command line) to apply "
            "what still fits"
        )
    return cast("P", plan)


def _site_details(plan: TransformationPlan) -> dict[SiteKey, Entry]:
    """Returns fingerprint, module and source of each site, taken while its nodes exist."""
    details: dict[SiteKey, Entry] = {}

    def note(match: PatternMatch) -> Refusal | None:
        details[site_key(match)] = {
            "fingerprint": site_fingerprint(match),
            "module": module_path(match.root),
            "source": source_line(match.root),
        }
        return None

    scratch = structural_copy(plan.model, deferred=True)
    for stage in plan.stages:
        apply_patterns(
            scratch, stage.patterns, stage.name, until_fixpoint=stage.until_fixpoint, gate=note
        )
    return details


def _entry(match: PatternMatch, details: dict[SiteKey, Entry]) -> Entry:
    stage, pattern, site, nodes = key = site_key(match)
    entry: Entry = {
        "stage": stage,
        "pattern": pattern,
        "site": site,
        "nodes": list(nodes),
        "apply": match.apply,
        **details.get(key, {}),
    }
    if match.refusal is not None:
        entry["reason"] = match.refusal.reason
    return entry


def _patterns_named(names: list[str], path: Path) -> tuple[Pattern, ...]:
    known = {kind.name: kind for kind in _subclasses(Pattern)}
    lost = [name for name in names if name not in known]
    if lost:
        raise PlanError(
            f"{path} names patterns that are not defined here: {', '.join(lost)}"
            f"{_near(lost[0], known)}. Import the modules that define them, or give patterns="
        )
    return instances([known[name] for name in names])


def _near(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (the nearest is {near[0]})" if near else ""


def _subclasses(kind: type[Pattern]) -> Iterator[type[Pattern]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _transfer(entries: list[Entry], plan: TransformationPlan) -> tuple[str, ...]:
    """Carries the saved decisions over; returns the saved sites that are gone."""
    details = _site_details(plan)
    open_sites = {site_key(match): match for match in plan.sites()}
    by_likeness: dict[tuple[object, ...], list[SiteKey]] = {}
    for key in open_sites:
        for likeness in _likenesses(key, details.get(key, {})):
            by_likeness.setdefault(likeness, []).append(key)
    found = _find_again(entries, open_sites, by_likeness)
    for number, match in found.items():
        _decide(match, entries[number])
    for match in open_sites.values():
        if match.apply:
            match.apply, match.refusal = False, Refusal("the saved plan does not hold this site")
    return tuple(
        f"{entry['pattern']} at %{entry['site']}{_module(entry)}"
        for number, entry in enumerate(entries)
        if number not in found and entry["apply"]
    )


def _module(entry: Entry) -> str:
    return f" (module {entry['module']})" if entry.get("module") else ""


def _find_again(
    entries: list[Entry],
    open_sites: dict[SiteKey, PatternMatch],
    by_likeness: dict[tuple[object, ...], list[SiteKey]],
) -> dict[int, PatternMatch]:
    """Returns the sites that entries mean, by number; takes them out of the open ones."""
    found: dict[int, PatternMatch] = {}
    for sureness in range(_WAYS_TO_FIND):
        for number, entry in enumerate(entries):
            match = None
            if number not in found:
                match = _take(entry, sureness, open_sites, by_likeness)
            if match is not None:
                found[number] = match
    return found


def _likenesses(key: SiteKey, details: Entry) -> Iterator[tuple[object, ...]]:
    """Yields what a saved site may be found by, the surest first."""
    stage, pattern, site, nodes = key
    shape = details.get("fingerprint")
    yield (stage, pattern, site, nodes, shape)
    if shape is not None:
        yield (stage, pattern, details.get("module"), shape)
        yield (stage, pattern, shape)


def _take(
    entry: Entry,
    sureness: int,
    open_sites: dict[SiteKey, PatternMatch],
    by_likeness: dict[tuple[object, ...], list[SiteKey]],
) -> PatternMatch | None:
    """Returns the site that an entry means and takes it out of the open ones."""
    nodes = tuple(cast("list[str]", entry["nodes"]))
    saved = (str(entry["stage"]), str(entry["pattern"]), str(entry["site"]), nodes)
    for likeness in islice(_likenesses(saved, entry), sureness, sureness + 1):
        for key in by_likeness.get(likeness, ()):
            if key in open_sites:
                return open_sites.pop(key)
    return None


def _decide(match: PatternMatch, entry: Entry) -> None:
    match.apply = cast("bool", entry["apply"])
    if not match.apply and match.refusal is None:
        match.refusal = Refusal(str(entry.get("reason", "vetoed in the saved plan")))
