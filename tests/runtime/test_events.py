"""A run's events: in order, on every store, whole where the store or a number fails, and never the end of a run."""

import json

import pytest
from small_pool import round_info

from quad_tasks.runtime import events
from quad_tasks.runtime.events import (
    last_event_s,
    read_events,
    read_peaks,
    read_times,
    record_event,
    record_round,
    recorded_run,
    timed,
)
from quad_tasks.storage.errors import StoreUnavailable
from quad_tasks.storage.keys import event_log_key, events_folder
from quad_tasks.storage.store import Store, open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def names(store, run="r"):
    return [event["event"] for event in read_events(store, run)]


def test_events_come_back_in_the_order_they_happened_with_their_process(store):
    for number in range(20):
        record_event(store, "r", "counted", number=number)
    found = read_events(store, "r")
    assert [event["number"] for event in found] == list(range(20))
    assert found == sorted(found, key=lambda event: event["time"])
    assert {event["run"] for event in found} == {"r"}
    assert all(event["host"] and event["pid"] for event in found)


def test_a_driver_records_its_start_its_steps_and_its_end_and_joins_them(store):
    with recorded_run(store, "r"), timed(store, "r", "fit"):
        record_round(store, "r", 1, 4, round_info(documents=12, mean_reward=0.5))
    lines = [json.loads(line) for line in store.get(event_log_key("r")).decode().splitlines()]
    assert lines == read_events(store, "r")
    assert [line["event"] for line in lines] == ["run_started", "round_committed", "step_ended", "run_ended"]
    assert (lines[1]["stage"], lines[1]["round"], lines[1]["documents"], lines[1]["mean_reward"]) == (1, 4, 12, 0.5)
    assert (lines[1]["cost_share"], lines[1]["gain_left"], lines[1]["findings"]) == (None, None, [])
    assert (lines[2]["step"], lines[2]["outcome"]) == ("fit", "done")
    assert lines[3]["outcome"] == "done"
    assert read_times(store, "r") == {"fit": lines[2]["seconds"]}


def test_the_peak_is_that_of_the_step_after_which_it_was_highest(store, monkeypatch):
    for peak, on_gpu in ((3, None), (5, 7), (4, 6)):
        monkeypatch.setattr(events, "peak_memory_bytes", lambda peak=peak: peak)
        monkeypatch.setattr(events, "peak_gpu_memory_bytes", lambda on_gpu=on_gpu: on_gpu)
        with timed(store, "r", "fit"):
            pass
    assert read_peaks(store, "r") == (5, 7)
    assert read_peaks(store, "none") == (0, None)


@pytest.mark.parametrize(("error", "outcome"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_run_that_ends_early_says_how(store, error, outcome):
    with pytest.raises(type(error)), recorded_run(store, "r"), timed(store, "r", "fit"):
        raise error
    *_, step, end = read_events(store, "r")
    assert (step["outcome"], end["outcome"]) == ("failed", outcome)
    if outcome == "failed":  # what a failed attempt took counts too; who interrupts a run waits for no worker
        assert step["peak_bytes"] == read_peaks(store, "r")[0] > 2**20
    else:
        assert read_peaks(store, "r") == (0, None)
    assert (end.get("error"), end.get("message")) == (("ValueError", "no") if outcome == "failed" else (None, None))


def test_a_second_driver_adds_to_the_log_of_the_first(store):
    for _ in range(2):
        with recorded_run(store, "r"):
            pass
    assert len(store.get(event_log_key("r")).splitlines()) == 4


def fail_to_write(monkeypatch, why):
    """Make every write to a store fail; return the list of what is said of it."""
    said: list[str] = []

    def fail(self, key, data):
        raise StoreUnavailable(why)

    events._say_once.cache_clear()
    monkeypatch.setattr(events, "notice", said.append)
    monkeypatch.setattr(Store, "put", fail)
    return said


def test_a_store_that_fails_ends_no_run_and_is_named_once(store, monkeypatch):
    said = fail_to_write(monkeypatch, "s3://key:secret@bucket is away")
    for _ in range(3):
        record_event(store, "r", "counted")
    assert len(said) == 1
    assert "the event 'counted' of run r is not recorded: StoreUnavailable" in said[0]
    assert "secret" not in said[0]


def test_a_time_that_cannot_be_recorded_ends_no_run_and_hides_no_error(store, monkeypatch):
    said = fail_to_write(monkeypatch, "away")
    with timed(store, "r", "fit"):
        pass
    with pytest.raises(ValueError, match="the body's own"), recorded_run(store, "r"), timed(store, "r", "fit"):
        raise ValueError("the body's own")
    assert "the time of the step 'fit' of run r is not recorded: StoreUnavailable: away" in said


def test_a_number_that_json_does_not_know_is_null(store):
    record_event(store, "r", "counted", threshold=float("-inf"), parts=[float("nan"), 1.0], inside={"x": float("inf")})
    (found,) = read_events(store, "r")
    assert (found["threshold"], found["parts"], found["inside"]) == (None, [None, 1.0], {"x": None})


def test_a_damaged_event_hides_no_other(store):
    record_event(store, "r", "first")
    store.put(f"{events_folder('r')}/20000101T000000.000000Z-00000000.json", b'{"cut o')
    store.put(f"{events_folder('r')}/20000101T000001.000000Z-00000000.json", b"[]")
    assert names(store) == ["first"]


def test_the_last_event_is_known_without_reading_any(store):
    assert last_event_s(store, "r") is None
    store.put(f"{events_folder('r')}/20260228T235959.500000Z-00000000.json", b"")
    assert last_event_s(store, "r") == 1772323199.5


@pytest.mark.parametrize("damage", [lambda body: body[:-3], lambda body: body.replace(b"seconds", b"sec\xefnds"), None])
def test_a_record_of_a_time_that_is_damaged_is_left_out(tmp_path, damage):
    store = open_store(str(tmp_path))
    with timed(store, "r", "fit"):
        pass
    (whole,) = store.list("runs/r/times")
    before = read_times(store, "r")
    assert list(before) == ["fit"]
    store.put("runs/r/times/other.json", damage(store.get(whole)) if damage else b"[]")
    assert read_times(store, "r") == before
