"""What is held out is known by its text: the same texts have the same identity, and a text that holds one is found."""

import pytest
from small_pool import small_config, topic_records

from quad_tasks.config.load import parse_config
from quad_tasks.runtime.contamination import HeldOutText, load_index
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.stages.influence.prepare_reference import prepare_reference
from quad_tasks.storage.store import open_store


@pytest.fixture
def prepare(dask_client, corpus, tmp_path):
    """Write reference tables with some changes to the configuration; return the store and their key."""

    def prepare(**changes):
        config = parse_config(small_config(corpus, str(tmp_path), **changes), "small")
        store = open_store(config.workspace)
        return store, prepare_reference.fn(store, config.reference, config.heldout, config.seed)

    return prepare


def test_texts_with_held_out_text_are_left_out(prepare):
    store, reference = prepare()
    measured, other = topic_records("harbour", 8, seed=1)[0]["text"], topic_records("kitchen", 1, seed=5)[0]["text"]
    texts = [other, measured, f"{other} {measured}", measured.upper()]
    assert HeldOutText(reference, 5).clean(store, texts) == [other]
    _, named = load_index(store, reference, 5)
    assert len(named) == read_reference(store, reference).heldout.documents


def test_what_is_measured_and_by_how_long_shingles_makes_the_identity(prepare):
    (store, one), (_, same), (_, other) = (
        prepare(),
        prepare(heldout__documents_per_domain=99),
        prepare(heldout__reference_domain=None),
    )
    assert one != same
    assert HeldOutText(one, 5).identity(store) == HeldOutText(same, 5).identity(store)
    assert HeldOutText(one, 5).identity(store) != HeldOutText(one, 6).identity(store)
    assert HeldOutText(one, 5).identity(store) != HeldOutText(other, 5).identity(store)
