"""What the report says of a run's provenance is what the run read and made."""

import json
from types import SimpleNamespace

from small_pool import stored

from quad_tasks.manifests.pool import InputFile, InputSpan, ShardManifest
from quad_tasks.report.provenance import _inputs
from quad_tasks.storage.keys import shard_manifest_key
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
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


def test_a_file_that_is_several_shards_is_one_input():
    store = open_store("memory://provenance")
    file = {"uri": "big.jsonl", "sha256": "b" * 64, "size_bytes": 20}
    whole = InputFile(uri="a.jsonl", sha256="a" * 64, size_bytes=5)
    spans = [InputSpan(**file, start=start, end=start + 10, before=start) for start in (0, 10)]
    for name, one in zip("xyz", [whole, *spans], strict=True):
        manifest = ShardManifest(
            shard=name, input=one, fields={}, tokenizer_sha256="", documents_sha256="", set_aside_sha256=None,
            documents=0, tokens=0, bytes=0, set_aside={},
        )  # fmt: skip
        write_manifest(store, shard_manifest_key("p", name), manifest)
        assert read_manifest(ShardManifest, store, shard_manifest_key("p", name)).input == one
    run = SimpleNamespace(
        store=store, config=SimpleNamespace(pool=SimpleNamespace(name="p")), pool=SimpleNamespace(shards=tuple("xyz"))
    )
    found = _inputs(run)
    assert (found.files, found.sha256) == (2, {"a.jsonl": "a" * 64, "big.jsonl": "b" * 64})
    assert found.digest == digest([["a.jsonl", "a" * 64], ["big.jsonl", "b" * 64]])
