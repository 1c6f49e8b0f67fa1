"""Documents that balance, and configurations recorded before formats were numbered."""

import json

import pytest

from quad_tasks.manifests.run import DocumentCounts, RunRecord
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import open_store


@pytest.mark.parametrize(("documents_in", "balanced"), [(15, True), (14, False), (16, False)])
def test_counts_balance_where_every_document_is_in_one_place(documents_in, balanced):
    counts = DocumentCounts(
        documents_in=documents_in, set_aside={"too_short": 2, "a": 1}, unpulled=5, rejected={"b": 3}, selected=4
    )
    assert counts.balanced is balanced


def test_a_run_recorded_before_formats_were_numbered_is_read_and_equals_todays(tmp_path):
    store, key = open_store(str(tmp_path)), "runs/r/config.json"
    body = {"run": "r", "seed": 3}
    where = {"compute": {"workers": 2}, "workspace": "/old", "diagnosis": {}}
    store.put(key, json.dumps(body | {"volatile": where, "digest": digest(body)}).encode())
    record = read_manifest(RunRecord, store, key)
    assert record == RunRecord(config=body, where=where)
    write_manifest(store, key, RunRecord(config=body, where={"workspace": "/elsewhere"}))
