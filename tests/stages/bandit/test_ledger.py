"""What is read back from a run's ledger is all of it: a lost round is named, a failed read is begun again."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit import ledger
from quad_tasks.stages.selection.select_documents import stage_selection, try_choice
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import choice_key, choice_manifest_key, manifest_key, round_folder
from quad_tasks.storage.store import open_store


@pytest.fixture
def copied(small_run, tmp_path):
    """A copy of a finished run's workspace, and its first stage."""
    shutil.copytree(small_run.workspace, tmp_path / "copy")
    store = open_store(str(tmp_path / "copy"))
    direction = rounds.list_rounds(store, small_run.run, 0)[0].info.direction
    return store, Stage(small_run.run, 0, pinned_pool(store, small_run.run), "", direction)


def test_a_last_round_that_is_gone_is_named_by_whatever_rests_on_it(copied, small_run):
    store, stage = copied
    committed = ledger.list_stage_rounds(store, stage.run, 0)
    assert len(committed) == ledger.read_choice(store, ledger.selected_key(stage)).rounds
    last = manifest_key(round_folder(stage.run, 0, len(committed) - 1))
    store.delete(last)
    how = stage_selection(small_run, 0)
    for read in (
        lambda: ledger.read_scores(store, stage.run, 1),
        lambda: ledger.read_cursors(store, stage.run, stage.version, 1, stage.direction),
        lambda: ledger.read_ledger(store, replace(stage, number=1), 0, 1.0),
        lambda: try_choice(store, stage, how, "again"),
    ):
        with pytest.raises(rounds.LedgerGap, match=f"{last}.*expected it as the last round of stage 0, found"):
            read()
    store.delete(choice_manifest_key(choice_key(stage.run, 0, "selected")))
    with pytest.raises(rounds.LedgerGap, match=last):  # a driver that knows how many it has committed
        try_choice(store, stage, replace(how, rounds=len(committed)), "again")


def test_a_read_that_failed_in_the_middle_of_a_round_applies_nothing_of_it(copied, monkeypatch):
    store, stage = copied
    number = len(rounds.list_rounds(store, stage.run, 0))
    read, failed = rounds.read_round_table, []

    def fail_once(store, manifest, name):
        if manifest.round == 1 and name == "scores" and not failed:
            failed.append(name)
            raise ConnectionError("lost")
        return read(store, manifest, name)

    monkeypatch.setattr(rounds, "read_round_table", fail_once)
    with pytest.raises(ConnectionError, match="lost"):
        ledger.read_ledger(store, stage, number, 1.0)
    again = ledger.read_ledger(store, stage, number, 1.0)
    ledger._open_ledger.cache_clear()
    whole = ledger.read_ledger(store, stage, number, 1.0)
    assert again is not whole
    assert [arms.tolist() for arms in again.pulled] == [arms.tolist() for arms in whole.pulled]
    np.testing.assert_array_equal(again.state.cursor, whole.state.cursor)
    assert sum(map(len, again.scores)) == sum(map(len, whole.scores))
    assert again.flops == whole.flops
