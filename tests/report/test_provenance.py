"""What the report says of a run's provenance is what the run read and made."""

import json

from small_pool import stored

from quad_tasks.storage.store import open_store


def test_provenance_names_the_selection_and_every_input(small_run):
    store = open_store(small_run.workspace)
    report = json.loads(store.get(f"runs/{small_run.run}/report/report.json"))
    found = report["provenance"]
    manifest = stored(store, f"runs/{small_run.run}/selection/manifest.json")
    assert found["selection"] == {"uuid": manifest["uuid"], "digest": manifest["digest"]}
    assert found["inputs"]["files"] == 3
    assert sorted(uri.rsplit("/", 1)[-1] for uri in found["inputs"]["sha256"]) == [
        "harbour.jsonl",
        "kitchen.jsonl",
        "weather.jsonl",
    ]
    assert [stage["stage"] for stage in found["stages"]] == [0, 1]
    assert {stage["scorer"] for stage in found["stages"]} <= {"exact", "low_rank", "forward_only"}
    assert found["packages"]["torch"] != "not installed"
