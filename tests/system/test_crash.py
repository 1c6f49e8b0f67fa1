"""A run killed at random moments of all its stages ends as if nothing had happened; `make bench-crash` kills more."""

import json
import os
import random
from pathlib import Path

import pytest
from benchmarks.crash_resume import disturb

KILLS, SEED = "QUAD_CRASH_KILLS", "QUAD_CRASH_SEED"
"""Environment variables for more kills, or others."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_resumed_with_other_workers_ends_as_the_calm_one(small_run, corpus, tmp_path):
    kills, generator = int(os.environ.get(KILLS, "2")), random.Random(int(os.environ.get(SEED, "0")))
    result = disturb(tmp_path, corpus, Path(small_run.workspace), kills, generator, workers=(1, 2))
    print(json.dumps(result))
    assert (result["kills"], result["identical"], result["rescored_rounds"]) == (kills, True, 0)
    assert result["restarted_rounds"] <= result["kills"]
