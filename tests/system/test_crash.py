"""A run killed at random moments of all its stages ends as if nothing had happened; `make bench-crash` kills more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "crash_resume.py"
KILLS, SEED = "QUAD_CRASH_KILLS", "QUAD_CRASH_SEED"
"""Environment variables for more kills, or others."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_resumed_with_other_workers_ends_as_the_calm_one(tmp_path):
    kills, seed = os.environ.get(KILLS, "2"), os.environ.get(SEED, "0")
    command = [sys.executable, str(BENCHMARK), "--kills", kills, "--seed", seed, "--json", "--directory", str(tmp_path)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    print(json.dumps(result))
    assert (result["kills"], result["identical"], result["rescored_rounds"]) == (int(kills), True, 0)
    assert result["restarted_rounds"] <= result["kills"]
