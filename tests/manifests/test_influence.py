"""Checkpoints of the format whose learning-rate schedule ran by tokens."""

import json

import pytest

from quad_tasks.manifests.influence import Checkpoint
from quad_tasks.storage.manifest import InvalidManifest, digest, read_manifest
from quad_tasks.storage.store import open_store

BODY = {
    "name": "fresh",
    "architecture": "LlamaForCausalLM",
    "parameters": 1,
    "weights_sha256": "w",
    "tokenizer": {"name": "t", "sha256": "s", "vocabulary": 300},
    "files": {},
}


def test_one_that_no_stage_has_trained_is_read_and_a_trained_one_is_refused_by_name(tmp_path):
    store = open_store(str(tmp_path))
    for name, body in (("first", BODY), ("trained", BODY | {"trained_tokens": 700})):
        store.put(name, json.dumps(body | {"digest": digest(body)}).encode())
    assert read_manifest(Checkpoint, store, "first").trained_steps == 0
    with pytest.raises(InvalidManifest, match="Checkpoint of format 3, got format 1"):
        read_manifest(Checkpoint, store, "trained")
