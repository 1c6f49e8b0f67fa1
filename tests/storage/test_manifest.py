"""Digests worked by hand, and what happens when a second manifest or a changed one is met."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.storage.manifest import (
    DigestMismatch,
    InvalidManifest,
    ManifestMismatch,
    digest,
    encode_manifest,
    read_manifest,
    write_manifest,
)
from quad_tasks.storage.store import StoreKeyError, open_store

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_digest_is_the_sha256_of_sorted_json_without_spaces():
    assert digest({"b": [1, 2.5], "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":[1,2.5]}').hexdigest()


def test_digest_does_not_depend_on_the_order_of_keys_or_on_tuples():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})


def test_digest_of_number_keys_is_that_of_what_json_stores():
    value = {2: "two", 10: "ten"}
    assert digest(value) == digest(json.loads(json.dumps(value)))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_has_no_digest(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"loss": number})


@given(st.dictionaries(st.text().filter(lambda name: name not in ("digest", "volatile")), JSON, max_size=4))
def test_any_body_comes_back_as_written_with_its_digest(body):
    store = open_store("memory://manifests")
    store.delete("manifest.json")
    written = write_manifest(store, "manifest.json", body)
    assert read_manifest(store, "manifest.json") == {**body, "digest": written}


def test_an_equal_manifest_is_skipped_though_its_volatile_part_differs(local_backend):
    store = open_store(local_backend.uri)
    first = write_manifest(store, "m.json", {"rows": 3, "volatile": {"created": "monday"}})
    assert write_manifest(store, "m.json", {"rows": 3, "volatile": {"created": "tuesday"}}) == first
    assert read_manifest(store, "m.json")["volatile"] == {"created": "monday"}


def test_other_content_is_refused_with_both_digests_and_the_key(local_backend):
    store = open_store(local_backend.uri)
    first = write_manifest(store, "m.json", {"rows": 3})
    with pytest.raises(ManifestMismatch, match=f"'m.json' .*expected digest {digest({'rows': 4})}, got {first}"):
        write_manifest(store, "m.json", {"rows": 4})
    assert read_manifest(store, "m.json")["rows"] == 3


def test_a_changed_manifest_is_refused_with_both_digests(local_backend):
    changed = encode_manifest({"rows": 3}).replace(b"3", b"4", 1)
    body = json.loads(encode_manifest({"rows": 3})) | {"rows": 4}
    local_backend.plant("m.json", json.dumps(body).encode())
    with pytest.raises(DigestMismatch, match=f"{digest({'rows': 3})}, got {digest({'rows': 4})}"):
        read_manifest(open_store(local_backend.uri), "m.json")
    assert changed != encode_manifest({"rows": 3})


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"{}", b'{"digest": 3}', b"\xff"])
def test_what_is_no_manifest_is_refused_by_name(local_backend, data):
    local_backend.plant("m.json", data)
    with pytest.raises(InvalidManifest, match=r"'m\.json' in .*expected a JSON object"):
        read_manifest(open_store(local_backend.uri), "m.json")


def test_a_missing_manifest_is_a_missing_key(local_backend):
    with pytest.raises(StoreKeyError, match=r"not found: 'm\.json'"):
        read_manifest(open_store(local_backend.uri), "m.json")
