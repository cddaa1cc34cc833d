import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy.backend import use_backend
from embedl_deploy.deployment import load_lowered, lower
from embedl_deploy.engines.recording import RecordingConfig, RecordingEngine
from embedl_deploy.errors import BuildError, CheckpointError, LoweringError, OutputPathError
from embedl_deploy.lowering import LoweredModule
from embedl_deploy.lowering.settings import Terms
from embedl_deploy.quantize import quantize

SHAPES = {"x": {0: Dim("batch", min=1, max=64)}}
Manifest = dict[str, object]


class Small(nn.Module):
    """Has tied weights, a size in its output and an operation between two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, x: Tensor, *, scale: float = 0.5) -> dict[str, object]:
        y = torch.sin(self.first(x)) * scale
        return {"y": self.second(y) + self.offset, "rows": (x.shape[0], None, float("inf"))}


def example(batch: int = 3) -> Tensor:
    return torch.linspace(-1, 1, batch * 4).reshape(batch, 4)


@pytest.fixture(scope="module")
def lowered() -> LoweredModule:
    """Linears on one engine, the rest eager."""
    torch.manual_seed(0)
    engine = RecordingEngine(RecordingConfig("linears", takes=["linear"]))
    return lower(Small().eval(), (example(),), engines=engine, dynamic_shapes=SHAPES)


@pytest.fixture
def saved(lowered: LoweredModule, tmp_path: Path) -> Path:
    path = tmp_path / "model.lowered"
    lowered.save(path)
    return path


def load(path: Path, trust_engines: bool = True) -> LoweredModule:
    return load_lowered(path, engines=[RecordingEngine], trust_engines=trust_engines)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Writes the archive again after ``change`` edited its entries; sums are made right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    manifest = json.loads(entries.pop("manifest.json"))
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in entries.items()
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps(manifest))
    return path


def with_manifest(path: Path, change: Callable[[Manifest], object]) -> Path:
    """Writes the archive again with another manifest."""

    def edit(entries: dict[str, bytes]) -> None:
        manifest = json.loads(entries["manifest.json"])
        change(manifest)
        entries["manifest.json"] = json.dumps(manifest).encode()

    return rewritten(path, edit)


@pytest.mark.parametrize("trust_engines", [True, False])
def test_a_loaded_model_computes_the_same(
    lowered: LoweredModule, saved: Path, trust_engines: bool
) -> None:
    loaded = load(saved, trust_engines=trust_engines)

    for batch in (1, 3, 64):
        output, expected = loaded(example(batch)), lowered(example(batch))
        assert torch.equal(output["y"], expected["y"])
        assert output["rows"] == expected["rows"] == (batch, None, float("inf"))
    assert loaded.report.engines == lowered.report.engines
    assert list(loaded.state_dict()) == list(lowered.state_dict())


@pytest.mark.parametrize("trust_engines", [True, False])
def test_a_loaded_model_is_on_the_terms_that_it_was_lowered_on(
    tmp_path: Path, trust_engines: bool
) -> None:
    off = RecordingEngine(RecordingConfig("off", factor=1.3, takes=["linear"]))
    model = Small().eval()
    lowered = lower(model, (example(),), engines=off, fallback=False, tolerance=0.5)
    lowered.save(tmp_path / "model.lowered")

    loaded = load(tmp_path / "model.lowered", trust_engines=trust_engines)

    assert loaded.terms == lowered.terms == Terms(fallback=False, tolerance=0.5)
    assert loaded.report.engines == {"subgraph_0": "off", "subgraph_1": "off"}


def test_what_is_built_anew_does_not_simulate_quantization_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BuildError("no kernel here")

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = example()
    with use_backend("inductor"):
        quantized = quantize(model, (x,), forward_loop=lambda model: model(x))
    for name, allowed in (("banned", False), ("allowed", True)):
        lowered = lower(quantized, (x,), engines=RecordingEngine(), allow_simulated=allowed)
        lowered.save(tmp_path / name)
    monkeypatch.setattr(RecordingEngine, "_build", fail)

    with pytest.raises(LoweringError, match="no kernel here"):
        load(tmp_path / "banned", trust_engines=False)
    assert load(tmp_path / "allowed", trust_engines=False).report.engines == {"subgraph_0": "eager"}


def test_a_file_that_says_no_terms_is_rebuilt_as_before(saved: Path) -> None:
    def without_terms(manifest: Manifest) -> None:
        for name in ("tolerance", "allow_simulated"):
            del manifest[name]

    with_manifest(saved, without_terms)

    assert load(saved, trust_engines=False).terms == Terms(allow_simulated=True)


@pytest.mark.parametrize("tolerance", [-1, "much", {"$float": "nan"}])
def test_a_damaged_tolerance_is_refused(saved: Path, tolerance: object) -> None:
    with_manifest(saved, lambda manifest: manifest.update({"tolerance": tolerance}))

    with pytest.raises(CheckpointError, match="tolerance must be 0 or more"):
        load(saved)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        def above(x: Tensor) -> Tensor:
            return x.sin()

        def below(x: Tensor) -> Tensor:
            return self.linear(x)

        return self.linear(torch.cond(x.sum() > 0, above, below, (x,)))


def test_control_flow_is_saved_with_its_branches(tmp_path: Path) -> None:
    model = Branches().eval()
    lowered = lower(model, (example(),), engines=RecordingEngine(RecordingConfig(takes=["linear"])))
    lowered.save(tmp_path / "model.lowered")

    loaded = load(tmp_path / "model.lowered")

    for x in (example() + 2, example() - 2):
        torch.testing.assert_close(lowered(x), model(x))
        assert torch.equal(loaded(x), lowered(x))


def test_ties_between_weights_survive(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        weights = archive.getinfo("weights.safetensors").file_size

    loaded = load(saved)

    assert set(loaded.state_dict()) >= {"first.weight", "first.bias", "second.bias", "offset"}
    assert weights < 4 * (4 * 4 + 3 * 4) + 700


def test_a_loaded_model_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.lowered"

    load(saved).save(again)

    assert again.read_bytes() == saved.read_bytes()


def test_a_fresh_process_computes_the_same(lowered: LoweredModule, saved: Path) -> None:
    code = (
        "import sys, torch\n"
        "from embedl_deploy.deployment import load_lowered\n"
        "from embedl_deploy.engines.recording import RecordingEngine\n"
        "model = load_lowered(sys.argv[1], engines=[RecordingEngine])\n"
        "x = torch.linspace(-1, 1, 12).reshape(3, 4)\n"
        "print(model(x)['y'].numpy().tobytes().hex())\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == lowered(example())["y"].numpy().tobytes().hex()


def test_a_flipped_byte_is_found(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        entry = archive.getinfo("weights.safetensors")
    content[entry.header_offset + 30 + len(entry.filename) + entry.file_size // 2] ^= 1
    saved.write_bytes(bytes(content))

    with pytest.raises(CheckpointError, match=r"weights.safetensors .* is damaged"):
        load(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(CheckpointError, match="cut short"):
        load(saved)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        load(tmp_path / "nothing")


def test_a_missing_entry_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    del entries["weights.safetensors"]
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)

    with pytest.raises(CheckpointError, match=r"lacks 'weights.safetensors'"):
        load(saved)


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "a/../../out", "a\\..\\out", "C:out", "a//b"]
)
def test_a_path_that_leaves_the_folder_is_refused(saved: Path, name: str) -> None:
    rewritten(saved, lambda entries: entries.update({name: b"x"}))

    with pytest.raises(CheckpointError, match="leads out of its folder"):
        load(saved)


def test_a_link_is_refused(saved: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(entry, "/etc/passwd")

    with pytest.raises(CheckpointError, match="a link"):
        load(saved)


def test_a_compressed_entry_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * 1_000_000)

    with pytest.raises(CheckpointError, match="compressed"):
        load(saved)


def test_an_entry_without_a_sum_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("extra", b"x")

    with pytest.raises(CheckpointError, match="has no sum"):
        load(saved)


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [("versions", "torch", "built for torch"), ("hardware", "machine", "built for machine")],
)
def test_another_version_or_machine_is_refused_and_can_be_rebuilt(
    saved: Path, table: str, key: str, message: str
) -> None:
    with_manifest(saved, lambda manifest: manifest[table].update({key: "another"}))  # type: ignore[union-attr]

    with pytest.raises(CheckpointError, match=f"{message}.*trust_engines=False"):
        load(saved)
    assert load(saved, trust_engines=False)(example())["y"].shape == (3, 4)


def hardware_of(manifest: Manifest) -> dict[str, object]:
    return cast("dict[str, object]", manifest["hardware"])


def test_a_processor_that_lacks_instructions_is_refused(saved: Path) -> None:
    def with_more(manifest: Manifest) -> None:
        cast("list[str]", hardware_of(manifest)["flags"]).append("amx_future")

    with_manifest(saved, with_more)

    with pytest.raises(CheckpointError, match=r"amx_future, which this one.*trust_engines=False"):
        load(saved)


def test_a_file_that_names_no_instructions_is_loaded_on_a_processor_of_its_family(
    saved: Path,
) -> None:
    with_manifest(saved, lambda manifest: hardware_of(manifest).pop("flags"))
    assert load(saved)(example())["y"].shape == (3, 4)

    with_manifest(saved, lambda manifest: hardware_of(manifest).update(cpu="AVX9999"))
    with pytest.raises(CheckpointError, match=r"cpu 'AVX9999', this machine has"):
        load(saved)


def test_another_gpu_matters_to_engines_on_it_only(saved: Path) -> None:
    def on_gpu(manifest: Manifest) -> None:
        engines = cast("dict[str, dict[str, dict[str, object]]]", manifest["engines"])
        engines["subgraph_1"]["state"]["device"] = "cuda:0"

    with_manifest(saved, lambda manifest: hardware_of(manifest).update(gpu=["Another", [1, 0]]))
    assert load(saved)(example())["y"].shape == (3, 4)

    with_manifest(saved, on_gpu)
    with pytest.raises(CheckpointError, match=r"gpu \['Another', \[1, 0\]\], this machine has"):
        load(saved)


def test_another_version_of_what_runs_an_engine_is_refused(
    lowered: LoweredModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingEngine, "libraries", ("torchao", "onnx"))
    path = tmp_path / "model.lowered"
    lowered.save(path)
    kept: list[Manifest] = []
    with_manifest(path, kept.append)
    told = cast("Manifest", kept[0]["versions"])
    assert sorted(told) == ["embedl_deploy", "torch", "torchao"]
    assert load(path)(example())["y"].shape == (3, 4)

    with_manifest(path, lambda manifest: manifest["versions"].update(torchao="0.0.1"))  # type: ignore[union-attr]

    with pytest.raises(CheckpointError, match=r"for torchao '0.0.1', this.*trust_engines=False"):
        load(path)
    assert load(path, trust_engines=False)(example())["y"].shape == (3, 4)


def test_another_version_of_this_package_loads_what_has_its_format(saved: Path) -> None:
    with_manifest(saved, lambda manifest: manifest["versions"].update(embedl_deploy="9.9"))  # type: ignore[union-attr]
    assert load(saved)(example())["y"].shape == (3, 4)

    with_manifest(saved, lambda manifest: manifest.update(format_version=99))
    with pytest.raises(CheckpointError, match=r"with the embedl_deploy that wrote it, 9\.9"):
        load(saved)


def test_another_format_is_refused(saved: Path) -> None:
    with_manifest(saved, lambda manifest: manifest.update({"format_version": 99}))

    with pytest.raises(CheckpointError, match="format version 99"):
        load(saved)


def test_an_engine_that_is_not_known_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs engine 'RecordingEngine'.*engines="):
        load_lowered(saved)


def _node(manifest: Manifest, op: str) -> dict[str, object]:
    graph = cast("dict[str, list[dict[str, object]]]", manifest["graph"])
    return next(node for node in graph["nodes"] if node["op"] == op)


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "aten::from_file.default", "profiler::a.b", "nonsense"],
)
def test_a_graph_that_calls_what_no_graph_calls_is_refused(saved: Path, target: str) -> None:
    with_manifest(saved, lambda manifest: _node(manifest, "call_function").update(target=target))

    with pytest.raises(CheckpointError, match="not registered here or not allowed"):
        load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x; import os"},
        {"name": "__class__"},
        {"target": "x): pass #"},
        {"op": "call_module"},
        {"op": "get_attr", "target": "__class__"},
    ],
)
def test_names_that_would_become_code_are_refused(saved: Path, change: dict[str, str]) -> None:
    with_manifest(saved, lambda manifest: _node(manifest, "placeholder").update(change))

    with pytest.raises(CheckpointError, match=r"impossible|before it is made"):
        load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("constraints", ["__import__('os').abort()"]),
        ("parameters", []),
        ("arguments", [99]),
        ("outputs", []),
        ("inputs", 3),
        ("symbols", {"s0); abort(": {}}),
    ],
)
def test_a_damaged_signature_is_refused(saved: Path, key: str, value: object) -> None:
    with_manifest(saved, lambda manifest: manifest["signature"].update({key: value}))  # type: ignore[union-attr]

    with pytest.raises(CheckpointError):
        load(saved)


def test_a_folder_that_is_not_there_is_named_and_nothing_is_left(
    lowered: LoweredModule, tmp_path: Path
) -> None:
    with pytest.raises(OutputPathError, match="cannot write"):
        lowered.save(tmp_path / "nothing" / "model.lowered")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_keeps_the_old_file(
    lowered: LoweredModule, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)

    with pytest.raises(OutputPathError, match="No space left"):
        lowered.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
