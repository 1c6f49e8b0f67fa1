"""A layout becomes a version only where it holds what came in."""

import pytest
from assigned_pool import CLUSTERING, FEATURES, NO_DRIFT, in_turn, write_pool

from quad_tasks.stages.pool import find_duplicates, sort_layout
from quad_tasks.stages.pool import lay_out_arms as layout
from quad_tasks.storage.errors import StoreFault
from quad_tasks.storage.pool_versions import list_versions
from quad_tasks.storage.store import open_store

SHARDS = [[{"id": f"d{s}-{i}", "text": f"{s} {i} " + "x" * i, "arm": (s + i) % 3} for i in range(20)] for s in range(3)]


@pytest.mark.parametrize("first", [0, 1])
def test_a_layout_that_lost_or_gained_documents_becomes_no_version(tmp_path, monkeypatch, first):
    for module in (find_duplicates, layout, sort_layout):
        monkeypatch.setattr(module, "map_tasks", in_turn)
    monkeypatch.setattr(sort_layout, "PART_ROWS", 4)
    store = open_store(str(tmp_path))
    names = write_pool(store, SHARDS, 3)
    write = layout.write_layout

    def lose_or_gain(*arguments):
        parts = write(*arguments)
        return parts[1:] if first else [parts[0], *parts]

    monkeypatch.setattr(layout, "write_layout", lose_or_gain)
    with pytest.raises(
        StoreFault, match=r"expected the 60 documents of the pool's shards, laid out or set aside, got \d"
    ):
        layout.lay_out_arms.fn(store, "p", 0, names, CLUSTERING, FEATURES, "m", "", NO_DRIFT)
    assert list_versions(store, "p") == []
