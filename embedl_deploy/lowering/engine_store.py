"""A folder of built engines and of choices between them, named by content."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from embedl_deploy.errors import CheckpointError, OutputPathError
from embedl_deploy.files import write_aside
from embedl_deploy.lowering.literals import Json
from embedl_deploy.lowering.report import FailedBuild, Measurement
from embedl_deploy.lowering.report_file import record_from_json, record_to_json


@dataclass(frozen=True)
class Choice:
    """Which engine won, and against what."""

    label: str
    """The engine's; "" if none of them could be used."""

    measurements: tuple[Measurement, ...]
    failures: tuple[FailedBuild, ...]


class EngineStore:
    """Keeps engines and choices in a folder; what is damaged there counts as missing.

    Engine files are code: a folder that others can write to runs what they put there.

    Raises:
        OutputPathError: There is no such folder, and none can be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputPathError(
                f"cache_dir must be a folder that exists or can be made, got {folder}: "
                f"{error.strerror or error}"
            ) from error
        self._folder = folder

    def engine_file(self, key: str) -> Path:
        """Returns where the engine of that key lies, or would."""
        return self._folder / f"{key}.engine"

    def choice(self, key: str) -> Choice | None:
        """Returns what was chosen before, None if that is not known."""
        try:
            saved: Json = json.loads(self._choice_file(key).read_bytes())
            found = record_from_json(saved, {Choice.__name__: Choice})
        except (OSError, ValueError, TypeError, KeyError, CheckpointError):
            return None
        return found if isinstance(found, Choice) else None

    def keep_choice(self, key: str, choice: Choice) -> None:
        """Writes a choice; a folder that cannot be written keeps nothing."""
        text = json.dumps(record_to_json(choice, {Choice.__name__: Choice}), indent=1)
        with contextlib.suppress(OSError):
            write_aside(self._choice_file(key), text.encode())

    def _choice_file(self, key: str) -> Path:
        return self._folder / f"{key}.choice.json"
