"""Publication counts every document once, however many stages scored it, and joins few texts at once."""

import pyarrow as pa
import pytest
from small_pool import round_info

from quad_tasks.manifests.run import Choice
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import CHOSEN_SCHEMA, SCORE_SCHEMA
from quad_tasks.stages.selection import publish
from quad_tasks.stages.selection.publish import count_documents
from quad_tasks.stages.selection.select_documents import write_chosen
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import choice_key, choice_manifest_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import open_store


def commit_stage(store, run, number, accepted, chosen):
    """Commit a stage of one round: whether each document scored is above τ, by position, and what was chosen."""
    n = len(accepted)
    columns = [list(accepted), [str(p) for p in accepted], ["x"] * n, [0] * n, [9] * n, [8] * n, [0.1] * n, [True] * n]
    scores = pa.table(columns, names=SCORE_SCHEMA.names).cast(SCORE_SCHEMA)
    scores = scores.append_column("accepted", pa.array(list(accepted.values())))
    rounds.commit_round(store, run, number, 0, {"scores": scores}, round_info())
    rows = [{"position": p, "id": str(p), "source": "x", "arm": 0, "n_tokens": 9, "scored": True} for p in chosen]
    key = choice_key(run, number, "selected")
    table = write_chosen(store, key, pa.Table.from_pylist(rows, CHOSEN_SCHEMA))
    write_manifest(store, choice_manifest_key(key), Choice(**table, budget_tokens=9, rounds=1))


def test_a_document_that_two_stages_scored_is_counted_once_by_its_last_verdict(small_run):
    store = open_store(small_run.workspace)
    version = pinned_pool(store, small_run.run)
    commit_stage(store, "twice", 0, {0: True, 1: False, 2: True, 3: True}, chosen=[0])
    commit_stage(store, "twice", 1, {2: False, 1: True, 3: True}, chosen=[3])
    counts = count_documents(store, "twice", 2, version)
    assert counts.rejected == {"over_budget": 1, "below_threshold": 1}
    assert (counts.selected, counts.unpulled) == (2, read_version(store, version).documents - 4)
    assert counts.balanced


@pytest.mark.parametrize("block_tokens", [1, 100])
def test_what_is_published_is_the_same_however_few_texts_are_joined_at_once(small_run, monkeypatch, block_tokens):
    store, blocks, read = open_store(small_run.workspace), [], publish.read_positions
    version = pinned_pool(store, small_run.run)
    monkeypatch.setattr(publish, "BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr(publish, "read_positions", lambda *given: blocks.append(read(*given)) or blocks[-1])
    stages, part_bytes = small_run.training.stages, small_run.selection.part_bytes
    assert publish.compare_published(store, small_run.run, stages, part_bytes, version) == []
    assert len(blocks) > 1
    chosen = publish.read_chosen(store, small_run.run, stages)
    most = max(block_tokens, *chosen["n_tokens"].to_pylist())
    assert max(block.num_rows for block in blocks) <= most
    assert sum(block.num_rows for block in blocks) == chosen.num_rows
