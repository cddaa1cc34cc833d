import json
from pathlib import Path

from embedl_deploy.tuning.machine import has_amx, machine_info


def test_info_is_json_and_names_the_versions() -> None:
    info = json.loads(json.dumps(machine_info()))

    assert info["versions"]["torch"].startswith("2.")
    assert info["cores"] >= 1


def test_flags_come_from_the_processor() -> None:
    flags = machine_info()["flags"]

    assert isinstance(flags, list)
    assert has_amx() == ("amx_int8" in flags)
    assert all(str(flag) in Path("/proc/cpuinfo").read_text() for flag in flags)
