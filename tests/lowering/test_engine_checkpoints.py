"""Lowered models of every engine, saved here and loaded in a fresh process."""

import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.deployment import load_lowered, lower
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering import LoweredModule

QUICK = ("eager", "onnxruntime", "openvino")
WITH_FILES = [
    "onnxruntime",
    "openvino",
    pytest.param("inductor", marks=pytest.mark.slow),
]
"""Those whose checkpoint holds a file that the engine reads itself."""

_LOADING = """
import sys, torch
from embedl_deploy.deployment import load_lowered
image = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
for path in sys.argv[1:]:
    print(load_lowered(path)(image).numpy().tobytes().hex())
"""


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def lowered_by(engine: str) -> LoweredModule:
    found = lower(Stem().eval(), (IMAGE,), engines=engine)
    assert list(found.report.engines.values()) == [engine]
    assert found.report.eager_nodes == ()
    return found


@pytest.fixture(scope="module")
def models() -> dict[str, LoweredModule]:
    return {engine: lowered_by(engine) for engine in QUICK}


def in_fresh_process(models: Mapping[str, LoweredModule], folder: Path) -> list[Tensor]:
    paths = [folder / f"{engine}.lowered" for engine in models]
    for path, model in zip(paths, models.values(), strict=True):
        model.save(path)
    command = [sys.executable, "-c", _LOADING, *map(str, paths)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [bytearray.fromhex(line) for line in printed.split()]
    return [torch.frombuffer(values, dtype=torch.float32).reshape(2, 4) for values in found]


def test_a_fresh_process_computes_the_same_bytes(
    models: dict[str, LoweredModule], tmp_path: Path
) -> None:
    found = in_fresh_process(models, tmp_path)

    for (engine, model), output in zip(models.items(), found, strict=True):
        assert torch.equal(output, model(IMAGE)), engine


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inductor", "torchao"])
def test_a_fresh_process_computes_the_same_with_what_was_compiled(
    engine: str, tmp_path: Path
) -> None:
    model = lowered_by(engine)

    (output,) = in_fresh_process({engine: model}, tmp_path)

    assert torch.equal(output, model(IMAGE))


@pytest.fixture(name="saved")
def saved_fixture(
    request: pytest.FixtureRequest, models: dict[str, LoweredModule], tmp_path: Path
) -> Path:
    engine: str = request.param
    path = tmp_path / "model.lowered"
    (models.get(engine) or lowered_by(engine)).save(path)
    return path


def engine_file(path: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        return next(entry for entry in archive.infolist() if "/files/" in entry.filename)


@pytest.mark.parametrize("saved", WITH_FILES, indirect=True)
def test_a_flipped_byte_in_an_engines_file_is_refused(saved: Path) -> None:
    entry = engine_file(saved)
    content = bytearray(saved.read_bytes())
    content[entry.header_offset + 30 + len(entry.filename) + entry.file_size // 2] ^= 1
    saved.write_bytes(bytes(content))

    with pytest.raises(CheckpointError, match=r"/files/.* is damaged"):
        load_lowered(saved)


@pytest.mark.parametrize("saved", WITH_FILES, indirect=True)
def test_an_engines_file_that_is_missing_or_escapes_is_refused(saved: Path) -> None:
    gone = engine_file(saved).filename
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    content = entries.pop(gone)

    for extra in ({}, {gone.replace("/files/", "/files/../../../"): content}):
        with zipfile.ZipFile(saved, "w") as archive:
            for name, data in {**entries, **extra}.items():
                archive.writestr(name, data)

        message = "leads out of its folder" if extra else f"lacks '{gone}'"
        with pytest.raises(CheckpointError, match=message):
            load_lowered(saved)


@pytest.mark.parametrize("saved", WITH_FILES, indirect=True)
def test_an_engines_file_of_another_content_is_refused_by_the_engine(saved: Path) -> None:
    """The sums are right, as in a file of another version of the engine's library."""
    entry = engine_file(saved).filename
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    old, new = sha256(entries[entry]).hexdigest(), sha256(b"other").hexdigest()
    entries["manifest.json"] = entries["manifest.json"].replace(old.encode(), new.encode())
    entries[entry] = b"other"
    with zipfile.ZipFile(saved, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)

    with pytest.raises(CheckpointError, match=r"cannot be loaded.*trust_engines=False"):
        load_lowered(saved)
    torch.testing.assert_close(
        load_lowered(saved, trust_engines=False)(IMAGE), Stem().eval()(IMAGE), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "openvino", "inductor", "torchao"])
def test_four_threads_of_ten_thousand_calls_get_their_own_rows(engine: str) -> None:
    model = lowered_by(engine)
    images = [IMAGE + seed for seed in range(4)]
    expected = [model(image) for image in images]
    wrong: list[int] = []
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            wrong.extend(
                seed
                for _ in range(10_000)
                if not torch.allclose(model(images[seed]), expected[seed], rtol=1e-4, atol=1e-5)
            )
        except Exception as error:  # noqa: BLE001  # a thread's error must reach the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (wrong, errors) == ([], [])
    assert model.report.fallback_count == 0
