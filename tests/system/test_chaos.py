"""A run under random faults accepts nothing that is wrong, and ends with the bytes of a calm one."""

import random
import shutil
from pathlib import Path

import pytest
from chaos import KINDS, Chaos, _unnoticed, draw_kinds, live
from small_pool import digests_of, small_config

from quad_tasks.commands.verify import MOST_SHOWN, verify_run
from quad_tasks.config.load import parse_config

FAULTS, GAP = 3 * len(KINDS), 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_under_random_faults_of_all_kinds_ends_as_a_calm_one(small_run, corpus, tmp_path):
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


def test_what_verification_takes_for_whole_is_listed_however_much_it_names(small_run, tmp_path):
    folder = tmp_path / "workspace"
    shutil.copytree(small_run.workspace, folder)
    chaos = Chaos(folder, random.Random(0), [], GAP)
    whole = [path for path in sorted(folder.glob("runs/small/**/*.parquet")) if path.stat().st_size]
    assert len(whole) > MOST_SHOWN
    for path in whole:
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        chaos.damaged[path.relative_to(folder).as_posix()] = (data, data[:-1])
    chaos.damaged["runs/small/unknown"] = (b"ab", b"a")
    (folder / "runs/small/unknown").write_bytes(b"a")
    assert _unnoticed(small_run.model_copy(update={"workspace": str(folder)}), chaos) == ["runs/small/unknown"]
