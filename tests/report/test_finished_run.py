"""What the report reads of a pool: amounts, added up part by part."""

import pyarrow as pa
import pytest

from quad_tasks.report import finished_run
from quad_tasks.report.finished_run import read_amounts
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_part
from quad_tasks.storage.store import open_store


@pytest.mark.parametrize("merged", [0, 5, 2**20])
def test_amounts_are_those_of_the_whole_pool_however_often_they_are_added_up(small_run, monkeypatch, merged):
    monkeypatch.setattr(finished_run, "MERGED_ROWS", merged)
    store = open_store(small_run.workspace)
    pool = read_version(store, pinned_pool(store, small_run.run))
    documents = pa.concat_tables([read_part(store, part, ["arm", "source", "n_tokens"]) for part in pool.parts])
    expected: dict[tuple[int, str], list[int]] = {}
    for row in documents.to_pylist():
        expected.setdefault((row["arm"], row["source"]), []).append(row["n_tokens"])
    amounts = read_amounts(store, pool).to_pylist()
    found = {(row["arm"], row["source"]): (row["documents"], row["tokens"]) for row in amounts}
    assert len(amounts) == len(found)
    assert found == {key: (len(tokens), sum(tokens)) for key, tokens in expected.items()}
