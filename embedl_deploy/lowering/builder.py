"""Gets engines for subgraphs: from the cache, from an executor, or built here."""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from embedl_deploy.engines.engine import Engine
from embedl_deploy.engines.scratch import run_folder
from embedl_deploy.errors import CheckpointError, OutputPathError
from embedl_deploy.lowering.build_errors import BUILD_ERRORS, PASSING_ERRORS, error_text
from embedl_deploy.lowering.build_job import (
    BuildJob,
    BuildOutcome,
    device_of,
    run_build,
    write_source,
)
from embedl_deploy.lowering.engine_archive import read_engine, write_engine
from embedl_deploy.lowering.engine_store import EngineStore
from embedl_deploy.lowering.environment import (
    hardware,
    resident_bytes,
    running_libraries,
    versions,
)
from embedl_deploy.lowering.fingerprint import digest, environment, graph_digest, input_forms
from embedl_deploy.lowering.literals import Json
from embedl_deploy.lowering.piece_spec import declared_inputs, spec_of
from embedl_deploy.lowering.settings import BuildSettings
from embedl_deploy.lowering.stitch import Piece

SPENT = "the time budget was spent"


@dataclass(frozen=True)
class Obtained:
    """An engine, or why there is none."""

    engine: Engine | None
    seconds: float = 0.0
    failure: str = ""
    is_passing: bool = False
    """Whether the failure says more of the moment than of the graph."""

    from_cache: bool = False
    resident_bytes: int | None = None


@dataclass(frozen=True)
class Work:
    """A subgraph with its example inputs, ready to be built."""

    piece: Piece
    examples: tuple[object, ...]
    content: str | None
    """Names graph, weights and declared sizes; None if they have no form as data."""

    @classmethod
    def of(cls, piece: Piece, examples: tuple[object, ...], settings: BuildSettings) -> "Work":
        """Returns the work; its content is read only where something is done with it."""
        if settings.cache_dir is None and settings.builds == 1:
            return cls(piece, examples, None)
        graph = graph_digest(piece.module)
        symbols: Json = {n: [s.lower, s.upper, s.example] for n, s in settings.symbols.items()}
        sizes: Json = [list(s) if isinstance(s, tuple) else s for s in declared_inputs(piece)]
        return cls(piece, examples, graph and digest([graph, sizes, symbols]))


@dataclass(frozen=True)
class _Submitted:
    """A build that an executor has."""

    target: Path
    future: Future[BuildOutcome]


class Builder:
    """Builds engines; to be used in a ``with`` block, which ends with no build under way."""

    def __init__(self, engines: Mapping[str, Engine], settings: BuildSettings) -> None:
        self.engines = engines
        self.settings = settings
        folder = settings.cache_dir
        self.store = None if folder is None else EngineStore(folder)
        self._cleanup = contextlib.ExitStack()
        self._scratch: Path | None = None
        self._executor: Executor | None = None
        self._futures: dict[str, _Submitted] = {}

    def __enter__(self) -> "Builder":
        return self

    def __exit__(self, *_: object) -> None:
        left = [submitted.future for submitted in self._futures.values()]
        for future in left:
            future.cancel()
        wait(left)
        self._cleanup.close()

    def key(self, work: Work, label: str) -> str | None:
        """Returns what names an engine of that label for ``work``; None if it cannot be kept."""
        engine = self.engines[label]
        if work.content is None or engine.is_jit:
            return None
        try:
            own = engine.key()
        except BUILD_ERRORS:  # a setting without a form as data
            return None
        around = environment({label: engine})
        return digest(
            [work.content, input_forms(work.examples), type(engine).__module__, own, around]
        )

    def start(self, work: Work, labels: Sequence[str]) -> None:
        """Hands builds to the executor, those that are not in the cache."""
        if self.settings.builds == 1:
            return
        source: Path | None = None
        for label in labels:
            key = self.key(work, label)
            if key is None or key in self._futures or self._is_kept(key):
                continue
            try:
                source = source or self._written(work)
                self._futures[key] = self._submitted(label, key, source)
            except (CheckpointError, OutputPathError, RuntimeError):
                return  # it is built here, where its errors belong to the engine

    def engine(self, work: Work, label: str, *, unless_spent: bool = False) -> Obtained:
        """Returns an active engine for ``work``.

        Args:
            work: What to build.
            label: The engine.
            unless_spent: Whether to give up when the time budget is spent and nothing is built.
        """
        key = self.key(work, label)
        kept = self._from_cache(key, work, label)
        if kept is not None:
            return kept
        submitted = None if key is None else self._futures.pop(key, None)
        if unless_spent and self.settings.is_spent and not (submitted and submitted.future.done()):
            if submitted is not None:
                submitted.future.cancel()
            return Obtained(None, failure=SPENT, is_passing=True)
        self.settings.say(f"building {work.piece.subgraph.name} with {label}")
        built = None if submitted is None else self._from_executor(submitted, work, label)
        return built or self._built_here(key, work, label)

    def _is_kept(self, key: str) -> bool:
        return self.store is not None and self.store.engine_file(key).exists()

    def _from_cache(self, key: str | None, work: Work, label: str) -> Obtained | None:
        if key is None or self.store is None or not self._is_kept(key):
            return None
        try:
            return self._loaded(self.store.engine_file(key), work, label, from_cache=True)
        except CheckpointError as error:
            self.settings.say(f"what the cache has is not used: {error}")
            return None

    def _loaded(self, path: Path, work: Work, label: str, *, from_cache: bool) -> Obtained:
        start, before = time.perf_counter(), resident_bytes()
        engine = read_engine(type(self.engines[label]), path, work.piece.module)
        grown = _grown(before, resident_bytes())
        seconds = time.perf_counter() - start
        return Obtained(engine, seconds, from_cache=from_cache, resident_bytes=grown)

    def _from_executor(self, submitted: "_Submitted", work: Work, label: str) -> Obtained | None:
        """Returns what the executor built; None if it could not run the build at all."""
        try:
            outcome = submitted.future.result()
        except Exception as error:  # noqa: BLE001  # an executor may fail in any way
            self.settings.say(f"the executor did not run a build: {error_text(error)}")
            return None
        if outcome.is_elsewhere:
            self.settings.say(f"what the executor would build is of no use here: {outcome.failure}")
            return None
        if outcome.failure:
            return Obtained(None, outcome.seconds, outcome.failure, outcome.is_passing)
        try:
            loaded = self._loaded(submitted.target, work, label, from_cache=False)
        except CheckpointError as error:
            return Obtained(None, outcome.seconds, error_text(error))
        return replace(loaded, seconds=loaded.seconds + outcome.seconds)

    def _built_here(self, key: str | None, work: Work, label: str) -> Obtained:
        prototype = self.engines[label]
        start = time.perf_counter()
        try:
            engine = type(prototype)(prototype.config)
            spec = spec_of(work.piece, self.settings.symbols)
            examples = work.examples
            folder = self.settings.cache_dir if engine.shares_cache else None
            device = device_of((*examples, *work.piece.module.parameters()))
            engine.build(work.piece.module, spec, [examples], device, folder)
            self._keep(key, engine)
            resident = self._resident(engine)
        except BUILD_ERRORS as error:
            passing = isinstance(error, PASSING_ERRORS)
            return Obtained(None, time.perf_counter() - start, error_text(error), passing)
        return Obtained(engine, time.perf_counter() - start, resident_bytes=resident)

    def _keep(self, key: str | None, engine: Engine) -> None:
        if key is not None and self.store is not None:
            # An engine whose state has no form as data runs all the same.
            with contextlib.suppress(CheckpointError, OutputPathError, ValueError):
                write_engine(engine, self.store.engine_file(key))

    def _resident(self, engine: Engine) -> int | None:
        if self.settings.choose == "first" or engine.is_jit:
            return None
        engine.deactivate()
        before = resident_bytes()
        engine.activate()
        return _grown(before, resident_bytes())

    def _folder(self) -> Path:
        if self._scratch is None:
            made = tempfile.TemporaryDirectory(dir=run_folder(self.settings.cache_dir))
            self._scratch = Path(self._cleanup.enter_context(made))
        return self._scratch

    def _written(self, work: Work) -> Path:
        path = self._folder() / f"{len(list(self._folder().iterdir()))}.source"
        write_source(work.piece, work.examples, self.settings.symbols, path)
        return path

    def _submitted(self, label: str, key: str, source: Path) -> "_Submitted":
        target = (
            self._folder() / f"{key}.engine" if self.store is None else self.store.engine_file(key)
        )
        engine = self.engines[label]
        config = engine.config.to_dict()
        folder = self.settings.cache_dir if engine.shares_cache else None
        here = {**versions(running_libraries([type(engine)])), **hardware()}
        threads = torch.get_num_threads()
        job = BuildJob(source, target, type(engine), config, threads, here, folder)
        return _Submitted(target, self._pool().submit(run_build, job))

    def _pool(self) -> Executor:
        builds = self.settings.builds
        if isinstance(builds, Executor):
            return builds
        if self._executor is None:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(builds, mp_context=spawn)
            self._executor = self._cleanup.enter_context(pool)
        return self._executor


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)
