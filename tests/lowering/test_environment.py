"""Where a built engine runs, and where it is refused."""

from pathlib import Path

import pytest

from embedl_deploy.engines.recording import RecordingEngine
from embedl_deploy.lowering import environment
from embedl_deploy.lowering.environment import hardware, misfit, running_libraries, versions
from embedl_deploy.lowering.literals import Json

X86 = """processor\t: 0
model name\t: Some processor
fpu\t\t: yes
flags\t\t: fpu vme pni avx512_fp16 hypervisor amx_tile avx2 smep
processor\t: 1
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm sve2 cpuid i8mm\n"


def table(**other: Json) -> dict[str, Json]:
    made: dict[str, Json] = {
        **versions(),
        **hardware(),
        "flags": ["amx_tile", "avx2"],
        "cpu": "AVX2",
        "gpu": ["One", [9, 0]],
    }
    return {**made, **other}


def reason(made: dict[str, Json], *, on_gpu: bool = False) -> str | None:
    return misfit(made, table(), libraries=("torchao",), on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(X86, ["amx_tile", "avx2", "avx512_fp16", "pni"]), (ARM, ["asimd", "fp", "i8mm", "sve2"])],
)
def test_the_instructions_that_compilers_use_are_read_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")

    assert hardware()["flags"] == expected


def test_without_cpuinfo_torch_tells_the_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "nothing")
    told = {"avx2": True, "amx_tile": False, "aes": True, "l2_cache_size": 1, "cpu_name": "A"}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: told, raising=False)

    assert hardware()["flags"] == ["aes", "avx2"]


def test_a_processor_with_more_instructions_will_do() -> None:
    assert reason(table(flags=["avx2"], cpu="DEFAULT")) is None
    assert reason(table(flags=["avx2", "amx_tile"])) is None


def test_instructions_that_are_lacking_are_named_few_of_many() -> None:
    few = reason(table(flags=["amx_int8", "avx2", "avx512_fp16"]))
    many = reason(table(flags=[f"avx{i}" for i in range(10, 17)]))

    assert few == "a processor with amx_int8, avx512_fp16, which this one lacks"
    assert many is not None
    assert "avx10, avx11, avx12, avx13, avx14 and 2 more" in many


@pytest.mark.parametrize("flags", [None, [], "avx2"])
def test_without_instructions_their_family_is_compared(flags: Json) -> None:
    assert reason(table(flags=flags)) is None
    assert reason(table(flags=flags, cpu="AVX512")) == "cpu 'AVX512', this machine has 'AVX2'"


def test_the_gpu_counts_where_an_engine_runs_on_it() -> None:
    other = table(gpu=["Another", [8, 0]])

    assert reason(other) is None
    assert reason(other, on_gpu=True) is not None


def test_a_library_counts_where_the_file_tells_its_version() -> None:
    here = table(torchao="0.18.0", openvino="2026.1")
    libraries = ("torchao",)

    def against(**made: Json) -> str | None:
        return misfit(table(**made), here, libraries=libraries, on_gpu=False)

    assert against() is None
    assert against(torchao="0.18.0", openvino="2024.1", embedl_deploy="0.0.1") is None
    assert against(torchao="0.17.0") == "torchao '0.17.0', this machine has '0.18.0'"


def test_a_library_that_was_installed_under_another_name_has_a_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"runtime_of_ours": ["torchao"]}
    monkeypatch.setattr(environment, "packages_distributions", lambda: installed)

    found = versions(("runtime_of_ours", "nothing_of_ours"))

    assert found["runtime_of_ours"] == versions(("torchao",))["torchao"] is not None
    assert found["nothing_of_ours"] is None


def test_the_first_library_of_an_engine_runs_it() -> None:
    class Engine(RecordingEngine):
        libraries = ("runtime", "exporter")

    assert running_libraries([Engine, RecordingEngine, Engine]) == ("runtime",)
