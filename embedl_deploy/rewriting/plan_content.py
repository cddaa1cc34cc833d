"""What a plan's JSON file must hold."""

import json
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import TypedDict, cast

from embedl_deploy.errors import PlanError
from embedl_deploy.rewriting.phase import Phase

FORMAT = 1
"""Version of the file format."""

Entry = dict[str, object]
"""A site as it is saved."""


class PlanContent(TypedDict):
    """A plan as it is saved."""

    backend: str | None
    patterns: list[str]
    sites: list[Entry]


def read_plan(path: Path) -> PlanContent:
    """Returns what a plan's file holds, every field of the type that it must have.

    Raises:
        PlanError: The file cannot be read, is no plan, or a field holds something else.
    """
    try:
        content: object = json.loads(path.read_text())
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error}") from error
    except ValueError as error:
        raise PlanError(f"{path} is no plan: {error}") from error
    if not isinstance(content, dict) or cast("Entry", content).get("format") != FORMAT:
        raise PlanError(f"{path} is no plan of format {FORMAT}, which this version reads")
    complaint = _complaint(cast("Entry", content))
    if complaint is not None:
        raise PlanError(f"{path} is damaged: {complaint}")
    return cast("PlanContent", content)


def require_known_patterns(content: PlanContent, given: Collection[str], path: Path) -> None:
    """Asserts that every site is of a pattern that the file lists or that was given.

    Raises:
        PlanError: One is of a pattern that nobody knows.
    """
    known = (*content["patterns"], *given)
    for number, entry in enumerate(content["sites"]):
        name = cast("str", entry["pattern"])
        if name not in known:
            raise PlanError(
                f"site {number} of {path} is of pattern {name!r}, which the file does not list"
                f"{nearest(name, known)}"
            )


def nearest(name: str, known: Collection[str]) -> str:
    """Returns which of some names was probably meant, for messages; "" if none is near."""
    near = get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else f"; it lists {', '.join(known) or 'none'}"


def _complaint(content: Entry) -> str | None:
    lost = [key for key in ("backend", "patterns", "sites") if key not in content]
    if lost:
        return f"it lacks {', '.join(lost)}"
    if not isinstance(content["backend"], str | None):
        return f"its backend must be a name or null, got {content['backend']!r}"
    if not _is_names(content["patterns"]):
        return f"its patterns must be a list of names, got {content['patterns']!r}"
    if not isinstance(content["sites"], list):
        return f"its sites must be a list, got {content['sites']!r}"
    complaints = map(_site_complaint, cast("list[object]", content["sites"]))
    found = ((number, said) for number, said in enumerate(complaints) if said is not None)
    return next((f"{said} of site {number}" for number, said in found), None)


def _site_complaint(site: object) -> str | None:
    if not isinstance(site, dict):
        return f"a list of fields must stand there, got {site!r}, in place"
    entry = cast("Entry", site)
    lost = [key for key in ("stage", "pattern", "site", "nodes", "apply") if key not in entry]
    if lost:
        return f"it lacks {', '.join(lost)}"
    if not isinstance(entry["apply"], bool):
        return f"apply must be true or false, got {json.dumps(entry['apply'])}, in the entry"
    stages = [phase.value for phase in Phase]
    if entry["stage"] not in stages:
        return f"stage must be one of {', '.join(stages)}, got {entry['stage']!r}, in the entry"
    if not _is_names(entry["nodes"]):
        return f"nodes must be a list of names, got {entry['nodes']!r}, in the entry"
    wrong = [key for key in ("pattern", "site") if not isinstance(entry[key], str)]
    return f"{wrong[0]} must be a name, got {entry[wrong[0]]!r}, in the entry" if wrong else None


def _is_names(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(name, str) for name in cast("list[object]", value))
