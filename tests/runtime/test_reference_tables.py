"""The reference tables of a finished run, each held against its manifest's digest."""

import pytest

from quad_tasks.config.schema import HeldoutConfig, ReferenceConfig
from quad_tasks.runtime.reference_tables import read_reference, read_reference_table
from quad_tasks.stages.influence.prepare_reference import prepare_reference
from quad_tasks.storage.keys import reference_table_key
from quad_tasks.storage.manifest import DigestMismatch
from quad_tasks.storage.store import open_store


@pytest.fixture
def reference(dask_client, tmp_path):
    """The key of reference tables of two documents each."""
    for name in ("reference", "heldout"):
        lines = [f'{{"id": "{name}{i}", "text": "{name} text number {i}", "domain": "{name}"}}' for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    store = open_store(str(tmp_path / "workspace"))
    inputs = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("reference", "heldout")}
    key = prepare_reference.fn(
        store, ReferenceConfig(inputs=inputs["reference"]), HeldoutConfig(inputs=inputs["heldout"]), 0
    )
    return store, key


def test_each_table_is_read_by_its_name(reference):
    store, key = reference
    assert [one.documents for one in read_reference(store, key).reference.sets] == [3]  # the fourth is measured
    names = [read_reference_table(store, key, part, ["id"])["id"].to_pylist() for part in ("reference", "measured")]
    assert sorted(names[0] + names[1]) == [f"reference{i}" for i in range(4)]
    assert read_reference_table(store, key, "heldout", ["id"]).num_rows == 4


def test_another_table_than_the_manifests_is_refused(reference):
    store, key = reference
    store.put(reference_table_key(key, "measured"), store.get(reference_table_key(key, "heldout")))
    with pytest.raises(DigestMismatch, match="measured"):
        read_reference_table(store, key, "measured")
