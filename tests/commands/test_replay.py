"""Replay: a run's own choices are found again; a ledger with another choice in it is told."""

import json
import shutil
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.replay import replay_run
from quad_tasks.runtime.run import load_run
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import run_folder
from quad_tasks.storage.lease import LeaseHeld, Owner, claim_lease, release_lease
from quad_tasks.storage.store import StoreKeyError, open_store

ANOTHER = Owner(host="elsewhere", user="ada", pid=7, started=datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture
def copied_run(small_run, tmp_path):
    """The finished run in a workspace of its own."""
    shutil.copytree(small_run.workspace, tmp_path / "workspace")
    return load_run(str(tmp_path / "workspace"), small_run.run)


def recommit(config, stage: int, number: int, change) -> None:
    """Replace a committed round by one whose pulls are changed."""
    store = open_store(config.workspace)
    committed = rounds.read_round(store, config.run, stage, number)
    written = {name: rounds.read_round_table(store, committed, name) for name in committed.tables}
    written["pulls"] = change(written["pulls"])
    store.delete(f"runs/{config.run}/stage-{stage:02d}/round-{number:05d}/manifest.json")
    rounds.commit_round(store, config.run, stage, number, written, committed.info)


def with_column(table: pa.Table, name: str, values: list[int]) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_every_round_of_every_stage_is_reproduced(small_run):
    replayed = replay_run(small_run)
    store = open_store(small_run.workspace)
    committed = [(n, r.round) for n in range(2) for r in rounds.list_rounds(store, small_run.run, n)]
    assert [(r["stage"], r["round"]) for r in replayed] == committed
    assert {r["kind"] for r in replayed} == {"pilot", "bandit"}
    assert all(r["reproduced"] for r in replayed)


def files_of(config):
    return {key for key in open_store(config.workspace).list() if "/lease/" not in key}


def test_a_run_that_another_process_drove_is_replayed_and_nothing_is_left(copied_run):
    store = open_store(copied_run.workspace)
    release_lease(store, claim_lease(store, run_folder(copied_run.run), ANOTHER))
    before, replayed = files_of(copied_run), replay_run(copied_run)
    active = [rounds.read_round_table(store, one, "scores")["active"] for one in rounds.list_rounds(store, "small", 1)]
    assert any(any(column.to_pylist()) for column in active)
    assert all(row["reproduced"] for row in replayed)
    assert files_of(copied_run) == before


def test_a_run_that_another_process_drives_is_not_replayed(copied_run):
    claim_lease(open_store(copied_run.workspace), run_folder(copied_run.run), ANOTHER)
    with pytest.raises(LeaseHeld, match="expected no other driver, got process 7 of ada on elsewhere"):
        replay_run(copied_run)


@pytest.mark.parametrize("column", ["arm", "cursor", "n_documents"])
def test_a_round_with_another_choice_is_told_from_the_others(copied_run, column):
    recommit(copied_run, 1, 1, lambda t: with_column(t, column, [abs(v - 1) for v in t[column].to_pylist()]))
    differs = [(r["stage"], r["round"]) for r in replay_run(copied_run) if not r["reproduced"]]
    assert differs == [(1, 1)]


def test_another_seed_does_not_reproduce_the_pilot(small_run):
    other = small_run.model_copy(update={"seed": small_run.seed + 1})
    assert not replay_run(other)[0]["reproduced"]


def test_the_command_exits_1_where_a_round_is_not_reproduced(copied_run):
    command = ["bandit", "replay", copied_run.run, "--workspace", copied_run.workspace, "--json"]
    whole = CliRunner().invoke(app, command)
    assert whole.exit_code == 0, whole.stderr
    assert json.loads(whole.stdout)["reproduced"]
    recommit(copied_run, 0, 2, lambda t: with_column(t, "arm", [abs(v - 1) for v in t["arm"].to_pylist()]))
    assert CliRunner().invoke(app, command).exit_code == 1
    assert "False" in CliRunner().invoke(app, command[:-1]).stdout


def test_a_run_without_rounds_is_named(copied_run):
    empty = copied_run.model_copy(update={"run": "empty"})
    with pytest.raises(StoreKeyError, match=r"run 'empty' in .*: expected committed rounds, found none"):
        replay_run(empty)
