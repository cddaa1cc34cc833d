import contextlib
import hashlib
import json
import random
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO, FileIO
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.engines import EagerEngine
from embedl_deploy.errors import CheckpointError, OutputPathError
from embedl_deploy.tuning.checkpoint import load, save
from embedl_deploy.tuning.measured_strategies import MinLatencyStrategy
from embedl_deploy.tuning.module import Module

Manifest = dict[str, object]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()


def data() -> Tensor:
    return torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of a tuned module."""
    wrapped = Module(model(), "net")
    wrapped(data())
    wrapped.tune(strategy=MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True))
    path = tmp_path_factory.mktemp("whole") / "net.tuned"
    save(wrapped, path)
    return path.read_bytes()


def rewritten(content: bytes, change: Callable[[dict[str, bytes], Manifest], object]) -> bytes:
    """Returns the checkpoint with other entries, their sums made right."""
    entries, manifest = entries_of(content)
    change(entries, manifest)
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(entry).hexdigest(), "bytes": len(entry)}
        for name, entry in entries.items()
    }
    return zipped({**entries, "manifest.json": json.dumps(manifest).encode()})


def entries_of(content: bytes) -> tuple[dict[str, bytes], Manifest]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return entries, json.loads(entries.pop("manifest.json"))


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return stream.getvalue()


def loaded(content: bytes, folder: Path) -> Module:
    path = folder / "net.tuned"
    path.write_bytes(content)
    result = load(model(), path)
    assert isinstance(result, Module)
    return result


def output_of(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(data())


def modules(manifest: Manifest) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", manifest["modules"])


def test_a_checkpoint_holds_no_samples_and_no_pickle(content: bytes) -> None:
    entries, manifest = entries_of(content)
    inner, _ = entries_of(entries["modules/0/graph_0.zip"])

    assert list(entries) == ["modules/0/graph_0.zip"]
    assert sorted(inner) == ["weights.safetensors"]
    assert "sample" not in json.dumps(manifest["modules"])


def set_format(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    manifest["format"] = "embedl_deploy.lowered"


def set_version(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    manifest["format_version"] = 2


def drop_modules(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries, manifest["modules"]


def drop_name(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    modules(manifest)[0].pop("name")


def drop_paths(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    modules(manifest)[0]["paths"] = [7]


def drop_report(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    cast("list[dict[str, object]]", modules(manifest)[0]["graphs"])[0].pop("graph")


def set_dtype(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    text = json.dumps(modules(manifest)).replace('"torch.float32"', '"torch.nn"')
    manifest["modules"] = json.loads(text)


def lose_graph(entries: dict[str, bytes], manifest: Manifest) -> None:
    del manifest
    entries.clear()


def lead_out(entries: dict[str, bytes], manifest: Manifest) -> None:
    del manifest
    entries["../escaped"] = b"x"


def damage_graph(entries: dict[str, bytes], manifest: Manifest) -> None:
    del manifest
    entries["modules/0/graph_0.zip"] = b"PK nothing"


def exchange_graph(entries: dict[str, bytes], manifest: Manifest) -> None:
    del entries
    cast("list[dict[str, object]]", modules(manifest)[0]["graphs"])[0]["archive"] = "../../x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_format, "holds no tuned pipeline"),
        (set_version, "format version 2, this package reads 1"),
        (drop_modules, "lacks its table of modules"),
        (drop_name, "lacks its name"),
        (drop_paths, "does not say where a module was"),
        (drop_report, "saved report of a graph is damaged"),
        (set_dtype, "saved report of a graph is damaged: ValueError: not a dtype: 'torch.nn'"),
        (lose_graph, "lacks modules/0/graph_0.zip"),
        (lead_out, "leads out of its folder"),
        (damage_graph, "is no checkpoint, or was cut short"),
        (exchange_graph, "lacks ../../x"),
    ],
)
def test_a_crafted_checkpoint_is_refused_with_the_reason(
    content: bytes,
    tmp_path: Path,
    change: Callable[[dict[str, bytes], Manifest], object],
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=message):
        loaded(rewritten(content, change), tmp_path)


def test_bombs_and_links_are_refused(content: bytes, tmp_path: Path) -> None:
    entries, manifest = entries_of(content)
    whole = {**entries, "manifest.json": json.dumps(manifest).encode()}
    link = zipfile.ZipInfo("modules/0/graph_0.zip")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "link.tuned"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("manifest.json", whole["manifest.json"])

    with pytest.raises(CheckpointError, match="compressed"):
        loaded(zipped(whole, zipfile.ZIP_DEFLATED), tmp_path)
    with pytest.raises(CheckpointError, match="a link"):
        load(model(), path)


Mutant = tuple[bytes, bool]
"""The bytes, and whether their sums were made right."""


def mutants(content: bytes, count: int) -> list[Mutant]:
    """Returns flipped, cut and spliced copies, and ones with other text in their JSON."""
    chance = random.Random(0)  # a test, not a secret
    found: list[Mutant] = []
    for number in range(count):
        kind = number % 4
        place = chance.randrange(len(content))
        if kind == 0:
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            found.append((bytes(changed), False))
        elif kind == 1:
            found.append((content[:place], False))
        elif kind == 2:
            other = chance.randrange(len(content))
            found.append((content[:place] + content[other:], False))
        else:
            found.append((with_other_json(content, chance), True))
    return found


def with_other_json(content: bytes, chance: random.Random) -> bytes:
    """Returns the checkpoint with one value of its JSON exchanged, its sums right."""
    values: list[object] = [None, -1, 2**80, 1e400, "", "../../x", [], {}, [[[]]], "torch.load"]

    def change(entries: dict[str, bytes], manifest: Manifest) -> None:
        inner, inner_manifest = entries_of(entries["modules/0/graph_0.zip"])
        outside = chance.random() < 0.5
        exchange_one(manifest["modules"] if outside else inner_manifest, chance, values)
        if not outside:
            whole = {**inner, "manifest.json": json.dumps(inner_manifest).encode()}
            entries["modules/0/graph_0.zip"] = zipped(whole)

    return rewritten(content, change)


def exchange_one(tree: object, chance: random.Random, values: list[object]) -> None:
    places: list[tuple[object, object]] = []
    pending: list[object] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            keyed = cast("dict[str, object]", node)
            places += [(keyed, key) for key in keyed]
            pending += keyed.values()
        elif isinstance(node, list):
            items = cast("list[object]", node)
            places += [(items, position) for position in range(len(items))]
            pending += items
    owner, key = chance.choice(places)
    cast("dict[object, object]", owner)[key] = chance.choice(values)


def fuzz(content: bytes, folder: Path, count: int) -> None:
    inside = folder / "inside"
    inside.mkdir()
    expected = output_of(model())
    refused = 0
    for mutant, crafted in mutants(content, count):
        before = set(folder.iterdir())
        try:
            module = loaded(mutant, inside)
        except CheckpointError:
            refused += 1
        else:
            # What was crafted may compute something else, or say that it cannot.
            with contextlib.suppress(*((RuntimeError, RuntimeWarning) if crafted else ())):
                output = output_of(module)
                assert crafted or torch.equal(output, expected)
        assert set(folder.iterdir()) == before
        assert [entry.name for entry in inside.iterdir()] == ["net.tuned"]
    assert refused > 0.6 * count


def test_a_damaged_checkpoint_gives_a_message_and_never_a_crash(
    content: bytes, tmp_path: Path
) -> None:
    fuzz(content, tmp_path, 60)


@pytest.mark.slow
def test_a_thousand_damaged_checkpoints_give_a_message(content: bytes, tmp_path: Path) -> None:
    fuzz(content, tmp_path, 1000)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
from embedl_deploy.engines import EagerEngine
from embedl_deploy.tuning.checkpoint import load, save
from embedl_deploy.tuning.measured_strategies import MinLatencyStrategy
from embedl_deploy.tuning.module import Module

folder, count = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
module = nn.Linear(256, 256).eval()
wrapped = Module(module, "net")
x = torch.randn(1, 256)
wrapped(x)
wrapped.tune(strategy=MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True))
path = folder / "net.tuned"
start = time.perf_counter()
save(wrapped, path)
seconds = time.perf_counter() - start
whole, chance, cut = path.read_bytes(), random.Random(0), 0
for _ in range(count):
    child = os.fork()
    if child == 0:
        save(wrapped, path)
        os._exit(0)
    time.sleep(chance.uniform(0, 1.2 * seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    cut += os.WIFSIGNALED(status)
    assert path.read_bytes() == whole, "the old file is lost"
load(module, path)
print(cut)
"""


@pytest.mark.slow
def test_200_killed_saves_leave_the_old_file_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), "200"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 50, "most saves were over before they were killed"


class FullDisk(FileIO):
    """A file on which only so many bytes fit before writing fails."""

    room = 0
    error: BaseException = OSError()

    def write(self, content: bytes) -> int:  # type: ignore[override]
        type(self).room -= len(content)
        if self.room < 0:
            raise self.error
        return super().write(content)


@pytest.mark.parametrize("budget", [0, 500, 3000, 5500])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "signal"]
)
def test_a_save_that_breaks_off_leaves_the_old_file_whole(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
    error: BaseException,
) -> None:
    module = loaded(content, tmp_path)
    plain = Path.open

    def open_file(path: Path, mode: str = "r", **options: str) -> object:
        return FullDisk(path, "x") if mode == "xb" else plain(path, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(FullDisk, "room", budget)
    monkeypatch.setattr(FullDisk, "error", error)
    monkeypatch.setattr(Path, "open", open_file)

    with pytest.raises((OutputPathError, KeyboardInterrupt)):
        save(module, tmp_path / "net.tuned")

    monkeypatch.undo()
    assert (tmp_path / "net.tuned").read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.tuned"]
