"""Influence of a whole pool: what was measured as it was measured, and what the choice itself was made from."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.export import export_influence as module
from quad_tasks.commands.export.export_influence import export_influence
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import read_choice, read_choice_table
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import choice_key
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import StoreKeyError, open_store


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("influence")
    return export_influence(small_run, str(folder)), pq.read_table(folder / "influence.parquet")


def choice_of(config, stage=1):
    return choice_key(config.run, stage, "selected")


def test_every_document_of_the_pool_has_one_influence(small_run, exported):
    summary, table = exported
    store = open_store(small_run.workspace)
    version = read_version(store, pinned_pool(store, small_run.run))
    assert summary["documents"] == len(table) == version.documents
    assert len(set(table["id"].to_pylist())) == version.documents
    assert np.isfinite(table["influence"].to_numpy()).all()
    assert 0 < summary["scored"] == sum(table["scored"].to_pylist()) < version.documents


def test_what_was_measured_stands_as_it_was_measured(small_run, exported):
    store = open_store(small_run.workspace)
    direction = read_choice(store, choice_of(small_run)).direction
    measured = {}
    for stage in range(2):
        for committed in rounds.list_rounds(store, small_run.run, stage):
            if committed.info.direction == direction:
                scores = rounds.read_round_table(store, committed, "scores")
                measured |= dict(zip(scores["position"].to_pylist(), scores["influence"].to_pylist(), strict=True))
    found = exported[1]["influence"].to_numpy()
    assert {n: found[n] for n in np.flatnonzero(exported[1]["scored"].to_numpy())} == measured


def test_predictions_are_those_that_documents_were_chosen_by(small_run, exported):
    chosen = read_choice_table(open_store(small_run.workspace), choice_of(small_run))
    predicted = chosen.filter(pa.compute.invert(chosen["scored"]))
    best = predicted.filter(pa.compute.is_valid(predicted["influence"]))
    assert len(best) > 0
    found = exported[1]["influence"].to_numpy()[best["position"].to_numpy()]
    np.testing.assert_allclose(found, best["influence"].to_numpy(), rtol=1e-9)


def test_blocks_of_documents_join_without_a_seam(small_run, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_DOCUMENTS", 7)
    export_influence(small_run, str(tmp_path))
    table = pq.read_table(tmp_path / "influence.parquet")
    assert table.drop_columns("influence").equals(exported[1].drop_columns("influence"))
    np.testing.assert_allclose(table["influence"].to_numpy(), exported[1]["influence"].to_numpy(), rtol=1e-9)


def test_documents_that_hold_held_out_text_are_left_out(small_run, exported, tmp_path, monkeypatch):
    held_out = np.flatnonzero(~exported[1]["scored"].to_numpy())
    # both documents of a block of two, and another
    held_out = held_out[np.flatnonzero((held_out[:-1] % 2 == 0) & (np.diff(held_out) == 1))[0] + np.array([0, 1, 4])]
    monkeypatch.setattr(module, "overlap_positions", lambda *_: held_out)
    monkeypatch.setattr(module, "READ_DOCUMENTS", 2)
    left = len(exported[1]) - 3
    assert export_influence(small_run, str(tmp_path))["documents"] == left
    table, kept = pq.read_table(tmp_path / "influence.parquet"), np.delete(np.arange(left + 3), held_out)
    assert table["id"].to_pylist() == exported[1]["id"].take(kept).to_pylist()
    np.testing.assert_allclose(table["influence"], exported[1]["influence"].take(kept), rtol=1e-9)


def test_a_run_that_has_chosen_nothing_is_refused(small_run, tmp_path):
    other = small_run.model_copy(update={"run": "other"})
    with pytest.raises(StoreKeyError, match="expected a choice of documents, found none yet"):
        export_influence(other, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it_in_place_of_the_selection(small_run, tmp_path):
    asked = ["export", "small", "--workspace", small_run.workspace, "--influence", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["influence.parquet"]
