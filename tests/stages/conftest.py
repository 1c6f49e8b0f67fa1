"""One finished run on a pool that holds held-out text and near-duplicates, of two stages that take much of it."""

import pytest
from small_pool import TOPICS, small_config, topic_records, write_corpus, write_jsonl


@pytest.fixture(scope="session")
def leaking_corpus(tmp_path_factory):
    """A pool with the reference verbatim, held-out text hidden or in capitals, and an edited copy of each document.

    The reference holds every other document twice, the second time in capitals under another id.
    """
    directory = write_corpus(tmp_path_factory.mktemp("leaking"))
    reference = topic_records("harbour", 24, seed=2)
    twins = [{**r, "id": f"{r['id']}-twin", "text": r["text"].upper()} for r in reference[::2]]
    write_jsonl(directory / "reference" / "harbour.jsonl", reference + twins)
    write_jsonl(directory / "pool" / "verbatim.jsonl", [{**r, "id": f"leak-{r['id']}"} for r in reference])
    kitchen, weather = (topic_records(topic, 8, seed=1) for topic in ("kitchen", "weather"))
    around = topic_records("weather", 16, seed=3)
    hidden = [
        {**held, "id": f"hidden-{i}", "text": f"{around[i]['text']} {held['text']} {around[8 + i]['text']}"}
        for i, held in enumerate(kitchen)
    ]
    shouted = [{**held, "id": f"shouted-{i}", "text": held["text"].upper()} for i, held in enumerate(weather)]
    write_jsonl(directory / "pool" / "hidden.jsonl", hidden + shouted)
    for topic in TOPICS:
        records = [r for r in topic_records(topic, 60, seed=0) if len(r["text"].split()) > 20]
        copies = [{**r, "id": f"{r['id']}-edited", "text": f"{r['text']} edited"} for r in records]
        write_jsonl(directory / "pool" / f"{topic}-copies.jsonl", copies)
    return directory


@pytest.fixture(scope="session")
def leaking_run(dask_client, leaking_corpus, tmp_path_factory):
    """The configuration of a finished run on it; the measured part is a share of the reference."""
    from flows.select_data import select_data
    from quad_tasks.config.load import parse_config

    body = small_config(
        leaking_corpus,
        str(tmp_path_factory.mktemp("workspace")),
        run="leaking",
        heldout__reference_domain=None,
        selection__budget_tokens=8000,
        training__frontier=[],
        training__seeds=2,
    )
    config = parse_config(body, "leaking")
    select_data(config)
    return config
