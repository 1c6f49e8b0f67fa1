"""Check the GPU path on one device and measure it: tests, rates, a whole fit, a trial. See `gpu_check.sh`.

Parts run in order, each within what is left of the time; a part that fails or finds no time says so in its place, and
the others go on. `gpu_check.json` in the folder given by `--out` is written after every part.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_rates
import gpu_trial
import torch

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 345.0
PACKAGES = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "safetensors", "tokenizers", "pytest")


class Clock:
    """What is left of the time."""

    def __init__(self, limit_s: float) -> None:
        """Start."""
        self.limit_s, self.started = limit_s, time.perf_counter()

    def spent_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def left_s(self) -> float:
        """Seconds until the end."""
        return self.limit_s - self.spent_s()


def environment(device: str) -> dict[str, Any]:
    """Describe commit, date, device and versions."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: _version(name) for name in (*PACKAGES, "kronfluence", "bergson")},
        "seed": gpu_trial.SEED,
    }


def run_tests() -> dict[str, Any]:
    """Run the tests marked `gpu`, which skip where there is none."""
    settings = ["-c", "tests/benchmarks/gpu_check.ini", "--rootdir", ".", "--confcutdir", "tests/core"]
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    command = [*plain, *settings, "tests/core/test_gpu.py"]
    started = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in run.stdout.strip().splitlines() if line]
    return {
        "exit_code": run.returncode,
        "summary": lines[-1] if lines else run.stderr[-500:],
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "differences": [line.strip() for line in lines if line.startswith("E ") and "difference" in line],
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Parse the command line, run the parts, write the report; exit 1 where a part failed."""
    parser = argparse.ArgumentParser(description="Check and measure the GPU path.")
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu_check.json")
    parser.add_argument("--tiny", action="store_true", help="models of no size, to see that it works")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds in all")
    parser.add_argument("--train-tokens", type=float, default=30e6, help="tokens the trial's model is pretrained on")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none (--tiny --device cpu shows that the script works)")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu: expected --tiny with it, found neither a GPU nor hours")
    clock, device, tiny = Clock(arguments.limit_s), arguments.device, arguments.tiny
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "tests": run_tests,
        "scoring": lambda: gpu_rates.measure_scoring(device, tiny, clock.left_s),
        "trial": lambda: gpu_trial.run_trial(device, tiny, int(arguments.train_tokens), clock.left_s),
        "whole_fit": lambda: gpu_rates.fit_whole(device, tiny, clock.left_s),
        "peers": lambda: gpu_rates.measure_peers(device, tiny, clock.left_s),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"environment": environment(device), "tiny": tiny, "limit_s": arguments.limit_s}
    for name, part in parts.items():
        started = clock.spent_s()
        try:
            report[name] = part()
        except Exception:  # one part's failure must not cost the others' results
            report[name] = {"error": traceback.format_exc(limit=8)}
        report[name]["part_s"] = clock.spent_s() - started
        report["seconds"] = clock.spent_s()
        if device == "cuda":
            report[name]["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        (arguments.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {report[name]['part_s']:.1f} s{', failed' if 'error' in report[name] else ''}", flush=True)
    print(f"wrote {arguments.out / 'gpu_check.json'} after {clock.spent_s():.0f} s")
    sys.exit(any("error" in report[name] for name in parts) or report["tests"]["exit_code"] not in (0, 5))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
