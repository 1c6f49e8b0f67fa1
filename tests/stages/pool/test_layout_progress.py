"""What a layout has finished is found again as it was, and only where it is of the same and whole."""

import numpy as np
import pytest

from quad_tasks.core.clustering.kmeans import arm_moments
from quad_tasks.manifests.pool import Part
from quad_tasks.stages.pool.arm_sums import ArmSums
from quad_tasks.stages.pool.layout_progress import PartSummary, find_bundle, find_group, keep_bundle, keep_group
from quad_tasks.stages.pool.shuffle import Dealt
from quad_tasks.storage.manifest import file_sha256
from quad_tasks.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    made = open_store(str(tmp_path))
    for key in ("table", "part-0", "part-1"):
        made.put(key, key.encode() * 9)
    return made


def summary(store, key: str) -> PartSummary:
    arm = np.array([2, 2, 5], np.int32)
    moments = arm_moments(np.array([[1 / 3, 2], [3, 4], [5, 6.7]], np.float32), arm)
    part = Part(key=key, rows=3, sha256=file_sha256(store, key), seal="s")
    return PartSummary(part, 8, ArmSums(moments, np.array([3, 4])))


def test_a_bundle_is_found_as_it_was_kept(store):
    dealt = Dealt(np.array([0, 4, 9]), file_sha256(store, "table"))
    assert find_bundle(store, "record", "table", "this") is None
    keep_bundle(store, "record", "this", dealt)
    found = find_bundle(store, "record", "table", "this")
    np.testing.assert_array_equal(found.bounds, dealt.bounds)
    assert found.sha256 == dealt.sha256
    assert find_bundle(store, "record", "table", "another") is None
    store.put("table", b"another object")
    assert find_bundle(store, "record", "table", "this") is None


def test_a_group_is_found_bit_for_bit_as_it_was_kept(store):
    summaries = [summary(store, "part-0"), summary(store, "part-1")]
    assert find_group(store, "record", "this") is None
    keep_group(store, "record", "this", summaries)
    found = find_group(store, "record", "this")
    assert [(one.part, one.bytes) for one in found] == [(one.part, 8) for one in summaries]
    assert found[1].sums.tokens_A.tolist() == [3, 4]
    for name in ("arm_A", "count_A", "sum_AD", "sum_squares_AD"):
        kept, again = getattr(summaries[0].sums.moments, name), getattr(found[0].sums.moments, name)
        assert (again.dtype, again.tobytes()) == (kept.dtype, kept.tobytes())
    assert find_group(store, "record", "another") is None


@pytest.mark.parametrize("spoil", [lambda store: store.delete("part-1"), lambda store: store.put("part-1", b"cut")])
def test_a_group_with_a_part_that_is_gone_or_another_is_not_taken(store, spoil):
    keep_group(store, "record", "this", [summary(store, "part-0"), summary(store, "part-1")])
    spoil(store)
    assert find_group(store, "record", "this") is None
