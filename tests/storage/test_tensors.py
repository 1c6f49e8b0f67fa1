"""Arrays come back bit for bit, as the same bytes each time, and nothing else is taken for them."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import save

from quad_tasks.storage.manifest import DigestMismatch
from quad_tasks.storage.store import StoreKeyError, open_store
from quad_tasks.storage.tensors import InvalidTensors, iterate_tensors, load_tensors, save_tensors

ARRAYS = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.int64]), npst.array_shapes(min_dims=0, max_dims=3, min_side=0)
)
METADATA = {"model": "tiny", "blocks": "joint", "damping": "0.1", "sample": "abc", "fisher": "true"}


def test_arrays_and_metadata_come_back_bit_for_bit(backend):
    arrays = {"A": np.eye(3), "S": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array([7])}
    store = open_store(backend.uri)
    save_tensors(store, "factors/f.safetensors", arrays, METADATA)
    loaded, metadata = load_tensors(store, "factors/f.safetensors")
    assert metadata == METADATA
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), ARRAYS, max_size=3))
def test_any_arrays_come_back(arrays):
    arrays.pop("__metadata__", None)
    store = open_store("memory://factors")
    save_tensors(store, "f", arrays, {})
    loaded, _ = load_tensors(store, "f")
    assert {name: (a.shape, a.dtype, a.tobytes()) for name, a in loaded.items()} == {
        name: (a.shape, a.dtype, a.tobytes()) for name, a in arrays.items()
    }


def test_arrays_come_one_at_a_time_by_name_and_bit_for_bit(backend):
    arrays = {"b": np.eye(3), "a": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.array(7)}
    store = open_store(backend.uri)
    save_tensors(store, "f", arrays, METADATA)
    found = list(iterate_tensors(store, "f"))
    assert [name for name, _ in found] == ["a", "b", "c"]
    for name, array in found:
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda body: body[:-8], InvalidTensors),
        (lambda body: body[:-1] + b"x", DigestMismatch),
        (lambda body: save({"a": np.ones(2)}, {"format": "np"}), InvalidTensors),
    ],
)
def test_damage_ends_the_reading_of_arrays_one_at_a_time(local_backend, damage, error):
    store = open_store(local_backend.uri)
    save_tensors(store, "f", {"a": np.ones(100)}, {})
    local_backend.plant("f", damage(local_backend.peek("f")))
    with pytest.raises(error, match="'f' in"):
        list(iterate_tensors(store, "f"))


def test_transposed_arrays_keep_their_values(local_backend):
    store = open_store(local_backend.uri)
    transposed = np.arange(6.0).reshape(2, 3).T
    save_tensors(store, "f", {"a": transposed}, {})
    np.testing.assert_array_equal(load_tensors(store, "f")[0]["a"], transposed)


def test_the_same_arrays_give_the_same_bytes_and_their_digest(local_backend):
    store = open_store(local_backend.uri)
    arrays = {name: np.ones(2) for name in "abcdef"}
    digests = {save_tensors(store, "f", arrays, METADATA) for _ in range(5)}
    assert digests == {hashlib.sha256(local_backend.peek("f")).hexdigest()}


@pytest.mark.parametrize("dtype", ["float16", "int32", "bool", "complex128", ">f8"])
def test_another_dtype_is_refused_by_the_arrays_name(local_backend, dtype):
    with pytest.raises(TypeError, match=r"array 'odd' for 'f': expected dtype float32, float64, int64"):
        save_tensors(open_store(local_backend.uri), "f", {"odd": np.zeros(2, dtype)}, {})
    assert local_backend.peek("f") is None


def test_a_truncated_file_is_refused_by_name(local_backend):
    store = open_store(local_backend.uri)
    save_tensors(store, "f", {"a": np.ones(100)}, {})
    local_backend.plant("f", local_backend.peek("f")[:-8])
    with pytest.raises(InvalidTensors, match=r"'f' in .*expected a safetensors file"):
        load_tensors(store, "f")


def test_a_header_that_claims_too_much_is_refused(local_backend):
    header = json.dumps({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}).encode()
    local_backend.plant("f", struct.pack("<Q", len(header)) + header)
    with pytest.raises(InvalidTensors, match="expected a safetensors file"):
        load_tensors(open_store(local_backend.uri), "f")


def test_a_foreign_safetensors_file_is_refused(local_backend):
    local_backend.plant("f", save({"a": np.ones(2)}, {"format": "np"}))
    with pytest.raises(InvalidTensors, match="expected metadata under 'quad'"):
        load_tensors(open_store(local_backend.uri), "f")


def test_missing_tensors_are_a_missing_key(backend):
    with pytest.raises(StoreKeyError, match="not found: 'f'"):
        load_tensors(open_store(backend.uri), "f")
