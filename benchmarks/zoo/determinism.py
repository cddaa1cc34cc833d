"""Compares the plans of the zoo, byte for byte, between processes with other hash seeds."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Plans every named case once per seed; 1 if a plan differs or a run fails to write one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="plan only cases whose name holds one of these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--workers", type=int, default=1, help="how many processes to use")
    options = parser.parse_args()
    flags = [*options.words, "--backend", options.backend, "--workers", str(options.workers)]
    with tempfile.TemporaryDirectory() as folder:
        sums = [_plan_sums(seed, Path(folder) / str(seed), flags) for seed in options.seeds]
    different = [name for name in sums[0] if any(s.get(name) != sums[0][name] for s in sums)]
    missing = sorted({name for s in sums for name in s} - set(sums[0]))
    sys.stdout.write(f"{len(sums[0])} plans under seeds {options.seeds}\n")
    sys.stdout.writelines(f"DIFFERENT {name}\n" for name in (*different, *missing))
    return 1 if different or missing or not sums[0] else 0


def _plan_sums(seed: int, folder: Path, flags: list[str]) -> dict[str, str]:
    """Returns the sum of each plan that a process with this hash seed writes."""
    folder.mkdir()
    run = [sys.executable, "-m", "benchmarks.zoo.run", *flags]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    subprocess.run([*run, "--only-plans", "--plans", str(folder)], env=environment, check=True)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


if __name__ == "__main__":
    raise SystemExit(main())
