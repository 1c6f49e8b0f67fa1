"""Digests worked by hand, and what happens when a second manifest or a changed one is met."""

import hashlib
import json
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.manifests.base import Manifest
from quad_tasks.storage.manifest import (
    DigestMismatch,
    InvalidManifest,
    ManifestMismatch,
    digest,
    encode_manifest,
    read_digest,
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


class Count(Manifest):
    """A manifest of the tests: so many rows, and (volatile) when they were counted."""

    VOLATILE: ClassVar[frozenset[str]] = frozenset({"created"})

    rows: int
    created: str = ""


class CountBySource(Manifest):
    """Its second format, which has the rows by source."""

    FORMAT: ClassVar[int] = 3

    rows: dict[str, int]

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        return {"rows": {"all": body["rows"]}} if found == 1 else None


def digest_of(rows: int) -> str:
    return digest({"rows": rows, "format": 1})


def test_a_manifest_is_stored_as_sorted_indented_json_with_a_digest_of_each_part():
    created = digest({"created": "monday"})
    expected = f"""{{
  "digest": "{digest_of(3)}",
  "digest_of_volatile": "{created}",
  "format": 1,
  "rows": 3,
  "volatile": {{
    "created": "monday"
  }}
}}
"""
    assert encode_manifest(Count(rows=3, created="monday")).decode() == expected


def test_a_manifest_without_a_volatile_part_has_no_place_for_one():
    assert list(json.loads(encode_manifest(CountBySource(rows={"all": 3})))) == ["digest", "format", "rows"]


class Anything(Manifest):
    content: dict[str, Any]


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_body_comes_back_as_written_with_its_digest(body):
    store = open_store("memory://manifests")
    store.delete("manifest.json")
    write_manifest(store, "manifest.json", Anything(content=body))
    assert read_manifest(Anything, store, "manifest.json").content == body
    assert read_digest(store, "manifest.json") == digest({"content": body, "format": 1})


def test_an_equal_manifest_is_skipped_though_its_volatile_part_differs(local_backend):
    store = open_store(local_backend.uri)
    write_manifest(store, "m.json", Count(rows=3, created="monday"))
    write_manifest(store, "m.json", Count(rows=3, created="tuesday"))
    assert read_manifest(Count, store, "m.json").created == "monday"
    assert read_digest(store, "m.json") == digest_of(3)


def test_other_content_is_refused_with_both_digests_and_the_key(local_backend):
    store = open_store(local_backend.uri)
    write_manifest(store, "m.json", Count(rows=3))
    with pytest.raises(ManifestMismatch, match=f"'m.json' .*expected digest {digest_of(4)}, got {digest_of(3)}"):
        write_manifest(store, "m.json", Count(rows=4))
    assert read_manifest(Count, store, "m.json").rows == 3


def test_a_changed_manifest_is_refused_with_both_digests(local_backend):
    body = json.loads(encode_manifest(Count(rows=3))) | {"rows": 4}
    local_backend.plant("m.json", json.dumps(body).encode())
    with pytest.raises(DigestMismatch, match=f"{digest_of(3)}, got {digest_of(4)}"):
        read_manifest(Count, open_store(local_backend.uri), "m.json")


def plant(backend, body: dict[str, Any]) -> None:
    """Store a body with the digest that it has, as another version of the product would."""
    backend.plant("m.json", json.dumps(body | {"digest": digest(body)}).encode())


def test_a_manifest_without_a_format_is_of_the_first(local_backend):
    plant(local_backend, {"rows": 3})
    assert read_manifest(Count, open_store(local_backend.uri), "m.json") == Count(rows=3)


def test_a_manifest_of_an_older_format_is_upgraded_and_equals_todays(local_backend):
    store = open_store(local_backend.uri)
    plant(local_backend, {"rows": 3})
    assert read_manifest(CountBySource, store, "m.json") == CountBySource(rows={"all": 3})
    write_manifest(store, "m.json", CountBySource(rows={"all": 3}))
    with pytest.raises(ManifestMismatch):
        write_manifest(store, "m.json", CountBySource(rows={"all": 4}))


@pytest.mark.parametrize("found", [2, 4, "1"])
def test_a_manifest_of_a_format_that_cannot_be_read_is_refused_by_name(local_backend, found):
    plant(local_backend, {"rows": 3, "format": found})
    with pytest.raises(InvalidManifest, match=rf"'m\.json' .*CountBySource of format 3, got format {found}"):
        read_manifest(CountBySource, open_store(local_backend.uri), "m.json")


def test_a_manifest_of_another_kind_is_refused_by_its_model(local_backend):
    plant(local_backend, {"lines": 3})
    with pytest.raises(InvalidManifest, match=r"'m\.json' in .*expected a Count, got"):
        read_manifest(Count, open_store(local_backend.uri), "m.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"{}", b'{"digest": 3}', b"\xff"])
def test_what_is_no_manifest_is_refused_by_name(local_backend, data):
    local_backend.plant("m.json", data)
    with pytest.raises(InvalidManifest, match=r"'m\.json' in .*expected a JSON object"):
        read_manifest(Count, open_store(local_backend.uri), "m.json")


def test_a_missing_manifest_is_a_missing_key(local_backend):
    with pytest.raises(StoreKeyError, match=r"not found: 'm\.json'"):
        read_manifest(Count, open_store(local_backend.uri), "m.json")
