"""A run under random faults accepts nothing that is wrong, and ends with the bytes of a calm one."""

import random
from pathlib import Path

import pytest
from chaos import Chaos, draw_kinds, live
from small_pool import digests_of, small_config

from quad_tasks.commands.verify import verify_run
from quad_tasks.config.load import parse_config

FAULTS, GAP = 20, 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_under_twenty_random_faults_ends_as_a_calm_one(small_run, corpus, tmp_path):
    config = parse_config(small_config(corpus, str(tmp_path / "workspace")), "chaos")
    generator = random.Random(7)
    chaos = Chaos(Path(config.workspace), generator, draw_kinds(FAULTS, generator), GAP)
    outcome = live(config, chaos)
    print(chaos.operations, chaos.struck, outcome)
    assert chaos.struck.total() >= FAULTS // 2  # as many as came before its end
    assert (outcome.accepted, outcome.unexplained) == ([], [])
    assert digests_of(config) == digests_of(small_run)
    verified = verify_run(config)
    assert (verified["balanced"], verified["scored_once"]) == (True, True)
