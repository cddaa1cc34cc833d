"""One zip of data files with SHA-256 sums: written aside and renamed, read with suspicion.

The sums detect damage, not malice: whoever can change a file can change its sum. What is read
is never unpickled, and never written outside the folder that the reader gives.
"""

import contextlib
import hashlib
import json
import stat
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from embedl_deploy.errors import CheckpointError, OutputPathError
from embedl_deploy.lowering.literals import Json

MANIFEST = "manifest.json"

_MOST_ENTRIES = 10_000
_LARGEST_JSON = 1 << 28
_CHUNK = 1 << 20


def write_archive(path: Path, header: dict[str, Json], files: Mapping[str, bytes | Path]) -> None:
    """Writes ``files`` and a manifest with their sums; ``path`` is complete or untouched.

    Raises:
        OutputPathError: The file cannot be written there.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("xb") as stream, zipfile.ZipFile(stream, "w") as archive:
            sums = {name: _add(archive, name, content) for name, content in files.items()}
            manifest = {**header, "files": sums}
            archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1, sort_keys=True))
        aside.replace(path)
    except OSError as error:
        _discard(aside)
        raise OutputPathError(
            f"cannot write {path}: {error.strerror or error}; give a path in a folder that exists "
            "and can be written"
        ) from error
    except BaseException:
        _discard(aside)
        raise


def _discard(aside: Path) -> None:
    with contextlib.suppress(OSError):
        aside.unlink(missing_ok=True)


def _entry(name: str) -> zipfile.ZipInfo:
    # A fixed date: the same content gives the same file.
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> Json:
    digest, size = hashlib.sha256(), 0
    with archive.open(_entry(name), "w", force_zip64=True) as target:
        if isinstance(content, bytes):
            target.write(content)
            digest.update(content)
            size = len(content)
        else:
            with content.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}


class ArchiveReader:
    """Reads an archive that may be damaged or made to do harm.

    Refused with ``CheckpointError``: what is no zip, or cut short; a name that leads out of the
    folder, or stands twice; a link; a compressed or encrypted entry (we write none, and what is
    not compressed cannot blow up); an entry without a sum, a sum without an entry, a wrong sum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"there is no file {path}") from error
        except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise CheckpointError(f"{path} is no checkpoint, or was cut short: {error}") from error
        self._entries = self._checked_entries()
        self.manifest = self._manifest()
        self._sums = self._checked_sums()

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sums)

    def read(self, name: str) -> bytes:
        """Returns the content of an entry once its sum is right."""
        if name not in self._sums:
            raise CheckpointError(f"{self.path} lacks {name}")
        content = self._content(name)
        expected = self._sums[name]
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(f"{name} in {self.path} is damaged: its SHA-256 sum is wrong")
        return content

    def extract(self, name: str, folder: Path) -> Path:
        """Writes an entry to ``folder`` under its own name and returns where."""
        target = folder.joinpath(*PurePosixPath(name).parts)
        if not target.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{self.path} holds {name!r}, which leads out of its folder")
        content = self.read(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._zip.infolist()
        if len(entries) > _MOST_ENTRIES:
            raise CheckpointError(f"{self.path} holds {len(entries)} entries, over {_MOST_ENTRIES}")
        found: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            trouble = _trouble(entry, found)
            if trouble:
                raise CheckpointError(f"{self.path} holds {entry.filename!r}, {trouble}")
            found[entry.filename] = entry
        return found

    def _manifest(self) -> dict[str, Json]:
        if MANIFEST not in self._entries:
            raise CheckpointError(f"{self.path} has no {MANIFEST}: it is no checkpoint of ours")
        if self._entries[MANIFEST].file_size > _LARGEST_JSON:
            raise CheckpointError(f"{MANIFEST} in {self.path} is too large")
        manifest = _parsed(self._content(MANIFEST), MANIFEST)
        if not isinstance(manifest, dict):
            raise CheckpointError(f"{MANIFEST} in {self.path} must be an object")
        return manifest

    def _checked_sums(self) -> dict[str, str]:
        files = self.manifest.get("files")
        sums: dict[str, str] = {}
        for name, entry in files.items() if isinstance(files, dict) else ():
            digest = entry.get("sha256") if isinstance(entry, dict) else None
            if not isinstance(digest, str):
                raise CheckpointError(f"{MANIFEST} in {self.path} has no sum for {name!r}")
            sums[name] = digest
        missing = [name for name in sums if name not in self._entries]
        extra = [name for name in self._entries if name not in sums and name != MANIFEST]
        if missing or extra:
            what = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r}, which has no sum"
            raise CheckpointError(f"{self.path} {what}")
        return sums

    def _content(self, name: str) -> bytes:
        try:
            return self._zip.read(self._entries[name])
        except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{name} in {self.path} is damaged: {error}") from error


def _trouble(entry: zipfile.ZipInfo, found: Mapping[str, object]) -> str:
    """Returns what is wrong with an entry, "" if nothing is."""
    name = entry.filename
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    if leads_out or not name or str(path) != name:
        return "which leads out of its folder"
    if name in found:
        return "twice"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a link"
    if entry.flag_bits & 0x1:
        return "which is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "which is compressed; a checkpoint is not"
    return ""


def _parsed(content: bytes, name: str) -> Json:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged: it is no JSON") from error
